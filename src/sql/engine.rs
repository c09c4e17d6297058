//! What each database does in its own way, so that the way of a statement is written once.

use super::{error::Failure, run::Given, statement::Compiled};
use crate::{
    db::{Backend, Session},
    routes::model::PageKey,
};

/// A database that SQL routes run on.
pub(super) trait Engine: Backend {
    /// What has to be known of the columns of a result before its rows can be written.
    type Columns;

    /// The arguments of a statement.
    fn bind(given: &Given<'_>) -> Result<Self::Arguments, Failure>;

    /// How many rows a statement has changed.
    fn affected(result: &Self::QueryResult) -> u64;

    /// Finds out about the columns of a result, of which `row` is one.
    async fn columns(
        session: &Session<Self>,
        compiled: &Compiled,
        row: &Self::Row,
    ) -> Result<Self::Columns, Failure>;

    /// Writes a row as a JSON object.
    fn write(row: &Self::Row, columns: &Self::Columns, out: &mut Vec<u8>) -> Result<(), Failure>;

    /// The keys of a row in the order of pages, as a JSON list.
    fn keys(row: &Self::Row, columns: &Self::Columns, keys: &[PageKey]) -> Result<String, Failure>;
}
