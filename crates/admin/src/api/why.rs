//! `GET /api/v1/why`: everything about one balance, and what happens next with it.

use actix_web::{HttpRequest, HttpResponse};
use balance_sync_view::why::{Question, WhyError, why};

use super::{Answer, State, auth::Who, fleet::no_tenant, params::Params, problem::Problem};

/// The handler.
pub(super) async fn ask(state: State, who: Who, request: HttpRequest) -> Answer {
    let params = Params::read(&request, &["member", "tenant", "alias", "key", "organization", "ledger"])?;
    let id = |name: &str| params.choice(name, None, "a UUID", |text| text.parse().ok().map(Some));
    let question = match (params.get("member"), params.get("tenant"), params.get("alias")) {
        (Some(member), None, None) => Question::Member(member.to_owned()),
        (Some(member), _, _) => {
            return Err(Problem::invalid("member", member, "alone, or else tenant and alias"));
        }
        (None, Some(tenant), Some(alias)) => Question::Balance {
            tenant: tenant.to_owned(),
            alias: alias.to_owned(),
            key: params.get("key").map(str::to_owned),
            organization: id("organization")?,
            ledger: id("ledger")?,
        },
        (None, Some(_), None) => return Err(Problem::invalid("alias", "", "the alias of an account")),
        (None, None, _) => {
            return Err(Problem::invalid(
                "member",
                "",
                "a key of a balance in Redis, or else tenant and alias",
            ));
        }
    };
    let mut answer = why(&state.reader, &state.inspector, &question).await.map_err(|error| match error {
        WhyError::NoTenant(id) => no_tenant(&id),
        WhyError::NotAMember(member) => {
            Problem::invalid("member", &member, "a key of a balance of a tenant that is listed or served")
        }
        WhyError::Redis(error) => error.into(),
    })?;
    if who.amounts_hidden() {
        answer.hide_amounts();
    }
    Ok(HttpResponse::Ok().json(answer))
}
