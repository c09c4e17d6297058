//! The response cache.

use std::time::Duration;

use super::{values, vars::Vars};

/// The response cache.
///
/// - `CACHE_L1_MAX_BYTES` (`256MiB`): memory for stored responses, over all workers.
/// - `CACHE_L1_TTL` (`5s`): with Redis, the longest a response is served from memory before Redis is
///   asked again whether it is still good.
/// - `CACHE_MAX_OBJECT_BYTES` (`8MiB`): the largest body stored; at most half of the above, or one
///   response could push out all others.
/// - `REDIS_CACHE_TTL_SECONDS` (`300`): freshness on a route with a `cache:` section where neither
///   it nor the origin gives one.
#[derive(Debug, Clone)]
pub struct CacheConfig {
    pub l1_max_bytes: u64,
    pub l1_ttl: Duration,
    pub max_object_bytes: u64,
    pub default_ttl: Duration,
}

impl CacheConfig {
    pub(super) fn read(vars: &mut Vars<'_>) -> Self {
        let config = Self {
            l1_max_bytes: vars.value("CACHE_L1_MAX_BYTES", 256 << 20, values::size),
            l1_ttl: vars.value("CACHE_L1_TTL", Duration::from_secs(5), values::duration),
            max_object_bytes: vars.value("CACHE_MAX_OBJECT_BYTES", 8 << 20, values::size),
            default_ttl: vars.value(
                "REDIS_CACHE_TTL_SECONDS",
                Duration::from_secs(300),
                values::duration,
            ),
        };
        if config.max_object_bytes > config.l1_max_bytes / 2 {
            vars.mistake(format!(
                "CACHE_MAX_OBJECT_BYTES={} is not valid: expected at most half of \
                 CACHE_L1_MAX_BYTES={} (bytes)",
                config.max_object_bytes, config.l1_max_bytes
            ));
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::config;

    #[test]
    fn the_largest_object_fits_the_cache_twice() {
        let errors = config(&[("CACHE_L1_MAX_BYTES", "15MiB")]).expect_err("8 MiB is over half");
        assert!(errors.contains("CACHE_MAX_OBJECT_BYTES=8388608"), "{errors}");
        assert!(config(&[("CACHE_L1_MAX_BYTES", "16MiB")]).is_ok());
    }
}
