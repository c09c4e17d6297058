//! Routes that are SQL: reads parameters from a request, runs the route's statement, and makes JSON of the
//! rows.
//!
//! Values never enter the text of a statement: that is made once, when the routes file is read, and its
//! parameters are bound.

mod check;
mod cursor;
mod engine;
mod error;
mod json;
mod params;
mod postgres;
mod run;
mod sqlite;
mod statement;

pub use check::{CheckError, check};
pub use cursor::next as next_page;
pub use error::Failure;
pub use params::{Caller, Input, Mistake, Mistakes, PathValue};
pub use run::{Call, Freshness, Outcome, Rows};
pub use statement::{Compiled, Dialect};
