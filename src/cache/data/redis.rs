//! The data cache in Redis.
//!
//! | key | holds |
//! |---|---|
//! | `namespace:d1:tenant:…` | a value, in the form of [`store`](super::store) |
//! | `namespace:c1:tenant:…` | a counter |
//!
//! In clear, for the operator. `d1` is the first version of the form.

use std::time::Duration;

use bytes::Bytes;

use super::{
    key::DataKey,
    store::{Page, Put, Store},
};
use crate::{
    cache::{
        purge::glob_matches,
        remote::{Error, Reply, redis::RedisRemote},
    },
    redis::{Cmd, Script, millis},
};

/// Keys that one call looks at.
const AT_ONCE: usize = 500;
/// Calls for one page: what is sought may be rare among other keys.
const CALLS: usize = 20;

/// What is done inside Redis, in one step each. Each touches one key.
#[derive(Debug)]
pub struct Scripts {
    write: Script,
    remove: Script,
    count: Script,
}

/// Compares what is there with a generation: -1 older, 0 the same, 1 younger. In two halves, as a
/// number has 53 bits here.
const AGE: &str = "
local function age(key, generation)
  local head = redis.call('GETRANGE', key, 0, 7)
  if #head < 8 then return -1 end
  local there, rest = struct.unpack('>I4I4', head)
  local high, low = struct.unpack('>I4I4', generation)
  if there ~= high then return there < high and -1 or 1 end
  if rest ~= low then return rest < low and -1 or 1 end
  return 0
end
";

const WRITE: &str = "
if age(KEYS[1], ARGV[1]) < tonumber(ARGV[4]) then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
";

const REMOVE: &str = "
if age(KEYS[1], ARGV[1]) < 0 then redis.call('DEL', KEYS[1]) end
";

const COUNT: &str = "
local count = redis.call('INCRBY', KEYS[1], ARGV[1])
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return count
";

impl Scripts {
    pub(in crate::cache) fn new() -> Self {
        let script =
            |flags: &str, parts: &[&str]| Script::new(&format!("#!lua{flags}\n{}", parts.concat()));
        Self {
            write: script("", &[AGE, WRITE]),
            // Frees memory, so it has to run where there is none left.
            remove: script(" flags=allow-oom", &[AGE, REMOVE]),
            count: script("", &[COUNT]),
        }
    }
}

impl RedisRemote {
    fn data_name(&self, key: &DataKey) -> String {
        format!("{}:d1:{key}", self.link().namespace())
    }
}

impl Store for RedisRemote {
    fn read<'a>(&'a self, key: &'a DataKey) -> Reply<'a, Option<Bytes>> {
        Box::pin(async move {
            let mut get = Cmd::new();
            get.arg("GET").arg(self.data_name(key));
            self.link().command(&get).await
        })
    }

    fn write<'a>(&'a self, put: &'a Put<'a>) -> Reply<'a, ()> {
        Box::pin(async move {
            self.link()
                .script(
                    self.data
                        .write
                        .key(self.data_name(put.key))
                        .arg(&put.filled_at.to_be_bytes()[..])
                        .arg(put.value)
                        .arg(millis(put.keep))
                        .arg(u8::from(put.wins)),
                )
                .await
        })
    }

    fn remove<'a>(&'a self, key: &'a DataKey, before: u64) -> Reply<'a, ()> {
        Box::pin(async move {
            let remove = &self.data.remove;
            let (name, before) = (self.data_name(key), before.to_be_bytes());
            self.link().script(remove.key(name).arg(&before[..])).await
        })
    }

    fn count<'a>(&'a self, key: &'a DataKey, by: i64, keep: Duration) -> Reply<'a, i64> {
        Box::pin(async move {
            let name = format!("{}:c1:{key}", self.link().namespace());
            self.link().script(self.data.count.key(name).arg(by).arg(millis(keep))).await
        })
    }

    fn scan<'a>(&'a self, glob: &'a str, cursor: &'a str, limit: usize) -> Reply<'a, Page> {
        Box::pin(async move {
            if self.link().health().mode == "cluster" {
                // A cursor is one node's, and which node a scan goes to is not for us to say.
                return Err(Error::Failed("the keys of a Cluster cannot be listed".to_owned()));
            }
            let prefix = format!("{}:d1:", self.link().namespace());
            let matching = format!("{}{}", escaped(&prefix), escaped_glob(glob));
            let mut page = Page::default();
            let mut cursor = if cursor.is_empty() { "0" } else { cursor }.to_owned();
            for _ in 0..CALLS {
                let mut scan = Cmd::new();
                scan.arg("SCAN").arg(&cursor).arg("MATCH").arg(&matching);
                scan.arg("COUNT").arg(AT_ONCE).arg("TYPE").arg("string");
                let (next, names): (String, Vec<String>) = self.link().command(&scan).await?;
                cursor = next;
                let keys = names.iter().filter_map(|name| name.strip_prefix(&prefix));
                let wanted = keys.filter(|key| glob_matches(glob.as_bytes(), key.as_bytes()));
                page.keys.extend(wanted.map(str::to_owned));
                if cursor == "0" {
                    return Ok(page);
                }
                // A cursor cannot stop within an answer, so a page may be larger by one.
                if page.keys.len() >= limit {
                    break;
                }
            }
            page.next = Some(cursor);
            Ok(page)
        })
    }
}

/// Text that stands for itself in Redis's globs.
fn escaped(text: &str) -> String {
    let special = |c: char| "*?[]\\^".contains(c);
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

/// A glob of `*` and `?`, in which everything else stands for itself.
fn escaped_glob(glob: &str) -> String {
    glob.split_inclusive(['*', '?'])
        .map(|part| match part.strip_suffix(['*', '?']) {
            Some(text) => escaped(text) + &part[text.len()..],
            None => escaped(part),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_stars_and_question_marks_are_special() {
        assert_eq!(escaped_glob("tenant:*:a?[b]*"), r"tenant:*:a?\[b\]*");
        assert_eq!(escaped_glob("plain"), "plain");
        assert_eq!(escaped("a*b"), r"a\*b");
    }
}
