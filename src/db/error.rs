//! What can go wrong, and what an error of a server says about the node it came from.

use std::borrow::Cow;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No primary is known, and none appeared while the call waited.
    #[error("no primary is known")]
    NoPrimary,
    /// No node can serve the read.
    #[error("no node can serve the read")]
    NoNode,
    /// Every connection is in use.
    #[error("every connection is in use")]
    Overloaded,
    /// The connection broke or the time ran out while a write was under way: it may have happened.
    #[error("the outcome of the write is unknown: {0}")]
    OutcomeUnknown(&'static str),
    /// The read took longer than `DATABASE_QUERY_TIMEOUT`.
    #[error("the query took too long")]
    TimedOut,
    /// The server refused the statement, or a row could not be read.
    #[error(transparent)]
    Query(sqlx::Error),
}

impl Error {
    /// What an error that came out of sqlx's query functions is.
    ///
    /// Those return [`sqlx::Error`], so the router's own errors travel inside one.
    pub fn of(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::AnyDriverError(inner) => match inner.downcast::<Self>() {
                Ok(own) => *own,
                Err(other) => Self::Query(sqlx::Error::AnyDriverError(other)),
            },
            other => Self::Query(other),
        }
    }

    /// The other way.
    pub(super) fn into_sqlx(self) -> sqlx::Error {
        match self {
            Self::Query(error) => error,
            own => sqlx::Error::AnyDriverError(Box::new(own)),
        }
    }
}

/// What an error says about its node. A bad query is not a bad node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// The connection is gone, or the server is on its way down or up.
    Dead,
    /// It refuses writes, and so certainly did not do this one: it is a replica.
    NotPrimary,
    /// Replay of the log got in the read's way; another node may answer.
    Conflict,
    /// It has no room for another connection.
    Full,
    /// The statement's own doing.
    Query,
}

pub(super) fn classify(error: &sqlx::Error) -> Class {
    match error {
        sqlx::Error::Database(database) => {
            database.code().map_or(Class::Query, |code| classify_sqlstate(&code))
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::WorkerCrashed => Class::Dead,
        _ => Class::Query,
    }
}

/// By SQLSTATE (PostgreSQL, appendix A). SQLite's codes are plain numbers and none of these.
fn classify_sqlstate(code: &str) -> Class {
    match code {
        // A read-only transaction: on a write handle, the node is in recovery.
        "25006" => Class::NotPrimary,
        // Serialization failure, which on a replica is "canceling statement due to conflict with
        // recovery".
        "40001" => Class::Conflict,
        "53300" => Class::Full,
        // The administrator cancels statements with 57014, which is no more than that.
        "57P01" | "57P02" | "57P03" | "57P04" | "57P05" => Class::Dead,
        _ if code.len() == 5 && code.starts_with("08") => Class::Dead,
        _ => Class::Query,
    }
}

/// What to show of an error to operators: never a statement, never a connection string.
pub(super) fn describe(error: &sqlx::Error) -> Cow<'static, str> {
    match error {
        sqlx::Error::Database(database) => match database.code() {
            Some(code) => format!("{} ({code})", database.message()).into(),
            None => database.message().to_owned().into(),
        },
        sqlx::Error::Io(error) => error.kind().to_string().into(),
        sqlx::Error::Tls(error) => format!("TLS: {error}").into(),
        other => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_query_is_not_a_bad_node() {
        for code in ["42601", "23505", "57014", "22P02", "40P01", "1", "8", "787", "2067", "08"] {
            assert_eq!(classify_sqlstate(code), Class::Query, "{code}");
        }
        for code in ["57P01", "57P03", "08006", "08P01"] {
            assert_eq!(classify_sqlstate(code), Class::Dead, "{code}");
        }
        assert_eq!(classify_sqlstate("25006"), Class::NotPrimary);
        assert_eq!(classify_sqlstate("53300"), Class::Full);
    }

    #[test]
    fn the_routers_errors_come_through_sqlx_and_out_again() {
        for error in [Error::NoPrimary, Error::OutcomeUnknown("it broke"), Error::Overloaded] {
            let text = error.to_string();
            assert_eq!(Error::of(error.into_sqlx()).to_string(), text);
        }
        assert!(matches!(Error::of(sqlx::Error::RowNotFound), Error::Query(_)));
    }
}
