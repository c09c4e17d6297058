//! The nodes of the database: what they are, and taking one out of the reads.

use actix_web::{
    HttpResponse,
    web::{Data, Path},
};

use super::{Context, problem};
use crate::problem::Code;

/// `GET /admin/v1/database`: every node with its role, state, position, lag and connections.
pub async fn show(context: Data<Context>) -> HttpResponse {
    HttpResponse::Ok().json(context.db.status())
}

/// `POST /admin/v1/database/{node}/drain`: gives a node no more reads. Writes still go to it if it is the
/// primary, since nothing else can take them.
pub async fn drain(context: Data<Context>, node: Path<String>) -> HttpResponse {
    set_drained(&context, &node, true)
}

/// `POST /admin/v1/database/{node}/undrain`: gives it reads again.
pub async fn undrain(context: Data<Context>, node: Path<String>) -> HttpResponse {
    set_drained(&context, &node, false)
}

fn set_drained(context: &Context, name: &str, drained: bool) -> HttpResponse {
    if !context.db.drain(name, drained) {
        return problem(Code::NotFound, Some("there is no node of this name"));
    }
    let status = context.db.status();
    HttpResponse::Ok().json(status.nodes.iter().find(|node| node.name == name))
}
