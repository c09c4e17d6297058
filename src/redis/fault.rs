//! What an error of the library or of the server means for the link.

use std::error::Error as _;

use ::redis::{ErrorKind, RedisError, ServerErrorKind};

/// Why a call has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No connection, no answer in time, too many calls at once, or known to be away.
    #[error("Redis is away")]
    Away,
    /// The server is a replica; reads still work.
    #[error("Redis is read-only")]
    ReadOnly,
    /// The server's memory is full and it evicts nothing; reads and deletions still work.
    #[error("Redis is out of memory")]
    OutOfMemory,
    /// The server refused this one command, or its reply has another form.
    #[error("Redis refused: {0}")]
    Failed(String),
}

/// What to make of a failed command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The connection is gone, or cannot be trusted any more.
    Broken,
    /// The server answers, but cannot serve for now: it loads, runs a long script, lacks replicas.
    Unavailable,
    /// The keys are on another node, or on their way there.
    Moved,
    ReadOnly,
    OutOfMemory,
    Failed,
}

impl Fault {
    pub(super) fn of(error: &RedisError) -> Self {
        match error.kind() {
            // Nothing after a reply that cannot be read belongs to the command it seems to answer.
            ErrorKind::Io | ErrorKind::Parse | ErrorKind::AuthenticationFailed => Self::Broken,
            ErrorKind::Server(
                ServerErrorKind::BusyLoading
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ClusterDown,
            ) => Self::Unavailable,
            ErrorKind::Server(
                ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::TryAgain,
            ) => Self::Moved,
            ErrorKind::Server(ServerErrorKind::ReadOnly) => Self::ReadOnly,
            _ => Self::by_text(error),
        }
    }

    /// Codes that the library does not know, and errors from inside scripts, which older servers
    /// wrap in a text of their own.
    fn by_text(error: &RedisError) -> Self {
        let detail = error.detail().unwrap_or_default();
        match error.code() {
            Some("OOM") => Self::OutOfMemory,
            Some("BUSY" | "NOREPLICAS") => Self::Unavailable,
            // The password was changed under the connection.
            Some("NOAUTH") => Self::Broken,
            _ if detail.contains("-OOM ") => Self::OutOfMemory,
            _ if detail.contains("-READONLY ") => Self::ReadOnly,
            _ => Self::Failed,
        }
    }
}

/// The error as operators and logs may see it: no address, no key, no secret. Servers put keys and
/// user names into what follows the code.
pub(super) fn describe(error: &RedisError) -> String {
    match (error.code(), error.source()) {
        (Some(code), _) => code.to_owned(),
        (None, Some(io)) => io.to_string(),
        (None, None) => error.category().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use ::redis::Parser;

    use super::*;

    fn reply(text: &str) -> RedisError {
        let value = Parser::new().parse_value(format!("-{text}\r\n").as_bytes()).expect("a reply");
        value.extract_error().expect_err("an error reply")
    }

    #[test]
    fn replies_of_servers_are_told_apart() {
        for (text, fault) in [
            ("LOADING Redis is loading the dataset in memory", Fault::Unavailable),
            ("BUSY Redis is busy running a script.", Fault::Unavailable),
            ("NOREPLICAS Not enough good replicas to write.", Fault::Unavailable),
            ("MASTERDOWN Link with MASTER is down", Fault::Unavailable),
            ("CLUSTERDOWN The cluster is down", Fault::Unavailable),
            ("MOVED 3999 127.0.0.1:6381", Fault::Moved),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Fault::Moved),
            ("READONLY You can't write against a read only replica.", Fault::ReadOnly),
            ("ERR Error running script: @user_script: 1: -READONLY You can't", Fault::ReadOnly),
            ("OOM command not allowed when used memory > 'maxmemory'.", Fault::OutOfMemory),
            ("ERR Error running script: @user_script: 1: -OOM command not", Fault::OutOfMemory),
            ("NOAUTH Authentication required.", Fault::Broken),
            ("WRONGTYPE Operation against a key", Fault::Failed),
            ("ERR unknown command", Fault::Failed),
            ("NOPERM this user has no permissions", Fault::Failed),
        ] {
            assert_eq!(Fault::of(&reply(text)), fault, "{text}");
        }
        let io = RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(Fault::of(&io), Fault::Broken);
    }

    #[test]
    fn a_description_names_no_key() {
        let error = reply("NOPERM this user has no permissions to access the 'k3y' key");
        assert_eq!(describe(&error), "NOPERM");
    }
}
