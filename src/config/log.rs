//! Logs.

use std::io::{IsTerminal, stdout};

use tracing_subscriber::EnvFilter;

use super::vars::Vars;

/// Logs.
///
/// - `LOG_FORMAT` (`pretty` on a terminal, else `json`).
/// - `RUST_LOG` (`info`): which events are written, in the notation of `tracing-subscriber`.
#[derive(Debug, Clone)]
pub struct LogConfig {
    pub format: LogFormat,
    pub filter: String,
}

/// How log events look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Pretty,
    Json,
}

impl LogConfig {
    pub(super) fn read(vars: &mut Vars<'_>) -> Self {
        let default = if stdout().is_terminal() { LogFormat::Pretty } else { LogFormat::Json };
        Self {
            format: vars.value("LOG_FORMAT", default, |text| match text {
                "pretty" => Ok(LogFormat::Pretty),
                "json" => Ok(LogFormat::Json),
                _ => Err("pretty or json".to_owned()),
            }),
            filter: vars.value("RUST_LOG", "info".to_owned(), |text| {
                match EnvFilter::builder().parse(text) {
                    Ok(_) => Ok(text.to_owned()),
                    Err(error) => {
                        Err(format!("levels such as info or warn,portway=debug ({error})"))
                    }
                }
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::LogFormat;
    use crate::config::tests::config;

    #[test]
    fn format_and_filter_are_checked() {
        let config_ = config(&[("LOG_FORMAT", "pretty"), ("RUST_LOG", "warn,portway=debug")]);
        let log = config_.expect("valid").log;
        assert_eq!((log.format, log.filter.as_str()), (LogFormat::Pretty, "warn,portway=debug"));
        assert!(config(&[("RUST_LOG", "portway=loud=very")]).is_err());
    }
}
