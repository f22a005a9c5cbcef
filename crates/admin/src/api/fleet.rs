//! The fleet at a glance, its workers, its tenants, one tenant.

use actix_web::{HttpRequest, HttpResponse, web};
use balance_sync_view::{
    reader::{StateFilter, TenantQuery, TenantSort},
    rows::{DeadWorker, TenantRow, WorkerRow},
};
use serde::Serialize;

use super::{Answer, State, params::Params, problem::Problem};

/// One page of tenants.
#[derive(Debug, Serialize)]
struct Page<'a> {
    total: usize,
    page: usize,
    per_page: usize,
    tenants: Vec<&'a TenantRow>,
}

/// Workers.
#[derive(Debug, Serialize)]
struct Workers<'a> {
    workers: &'a [WorkerRow],
    shadows: &'a [WorkerRow],
    dead: &'a [DeadWorker],
}

/// `GET /api/v1/overview`.
pub(super) async fn overview(state: State, request: HttpRequest) -> Answer {
    Params::read(&request, &[])?;
    Ok(HttpResponse::Ok().json(state.reader.view().await.overview()))
}

/// `GET /api/v1/workers`.
pub(super) async fn workers(state: State, request: HttpRequest) -> Answer {
    Params::read(&request, &[])?;
    let view = state.reader.view().await;
    Ok(HttpResponse::Ok().json(Workers {
        workers: &view.workers,
        shadows: &view.shadows,
        dead: &view.dead_workers,
    }))
}

/// `GET /api/v1/tenants`.
pub(super) async fn tenants(state: State, request: HttpRequest) -> Answer {
    let params = Params::read(&request, &["state", "q", "sort", "order", "page", "per_page"])?;
    let (page, per_page) = params.paging()?;
    let states = params.choices("state", &StateFilter::names(), StateFilter::parse)?;
    let query = TenantQuery {
        states,
        text: params.get("q").unwrap_or_default().to_owned(),
        sort: params.choice("sort", TenantSort::Id, TenantSort::NAMES, TenantSort::parse)?,
        descending: params.choice("order", false, "asc, desc", |order| match order {
            "asc" => Some(false),
            "desc" => Some(true),
            _ => None,
        })?,
        page,
        per_page,
    };
    let view = state.reader.view().await;
    let (total, tenants) = view.page(&query);
    Ok(HttpResponse::Ok().json(Page { total, page, per_page, tenants }))
}

/// `GET /api/v1/tenants/{id}`.
pub(super) async fn tenant(state: State, id: web::Path<String>, request: HttpRequest) -> Answer {
    Params::read(&request, &[])?;
    match state.reader.detail(&id).await {
        Some(detail) => Ok(HttpResponse::Ok().json(detail)),
        None => Err(no_tenant(&id)),
    }
}

/// There is no such tenant.
pub(super) fn no_tenant(id: &str) -> Problem {
    let shown: String = id.chars().take(100).collect();
    Problem::not_found(format!("no tenant {shown:?} is listed or served"))
}
