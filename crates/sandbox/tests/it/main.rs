//! The sandbox's servers, its tenant service, its proxy and its producer, as tests use them.
#![allow(clippy::unwrap_used)]

mod grants;
mod producer;
mod proxy;
mod sandbox;
mod servers;
mod tenant_service;
