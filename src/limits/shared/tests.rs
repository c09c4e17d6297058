//! The script on a real server, held against the model.
//!
//! A connection of its own and not the link: that one gives up after a while, and a busy machine would
//! be a failed test.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use proptest::{prelude::*, test_runner::TestRunner};
use tempfile::TempDir;

use super::*;
use crate::{
    limits::{Identity, model::Model},
    routes::{Limit, LimitBy},
};

/// A `redis-server` of one test.
struct Server {
    child: Child,
    connection: BufReader<UnixStream>,
    /// Where its socket is; removed after it is gone.
    _dir: TempDir,
}

/// What it replies.
#[derive(Debug)]
enum Reply {
    Integer(u64),
    Text(String),
    List(Vec<Reply>),
}

impl Server {
    fn start() -> Self {
        let dir = TempDir::new().expect("there is a temporary directory");
        let socket = dir.path().join("redis");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--unixsocket"]).arg(&socket);
        command.stdout(Stdio::null());
        let child = command.spawn().expect("redis-server is installed");
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => {
                    return Self { child, connection: BufReader::new(stream), _dir: dir };
                }
                Err(error) => assert!(Instant::now() < deadline, "redis-server: {error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn call(&mut self, command: &[&str]) -> Reply {
        let mut text = format!("*{}\r\n", command.len());
        for part in command {
            text.push_str(&format!("${}\r\n{part}\r\n", part.len()));
        }
        self.connection.get_mut().write_all(text.as_bytes()).expect("the server lives");
        self.reply()
    }

    fn reply(&mut self) -> Reply {
        let mut line = String::new();
        self.connection.read_line(&mut line).expect("the server answers");
        let (kind, rest) = line.trim_end().split_at(1);
        match kind {
            "+" => Reply::Text(rest.to_owned()),
            ":" => Reply::Integer(rest.parse().expect("not negative")),
            "*" => Reply::List((0..rest.parse().expect("a count")).map(|_| self.reply()).collect()),
            "$" => {
                let length: usize = rest.parse().expect("a length");
                let mut text = vec![0; length + 2];
                self.connection.read_exact(&mut text).expect("the server answers");
                Reply::Text(String::from_utf8_lossy(&text[..length]).into_owned())
            }
            _ => panic!("{line}"),
        }
    }

    /// Runs the script on a clock that is set to `now`, or on the server's own.
    fn decide(&mut self, asked: &[(Key, Quota)], now: Option<u64>) -> Vec<Standing> {
        let text = match now {
            Some(now) => format!("local now = {now}\n{BODY}"),
            None => format!("{SERVERS_CLOCK}{BODY}"),
        };
        let mut command = vec!["EVAL".to_owned(), text, asked.len().to_string()];
        command.extend(asked.iter().map(|(key, _)| key.to_string()));
        let numbers = asked.iter().flat_map(|(_, quota)| [quota.requests.into(), quota.slot]);
        command.extend(numbers.map(|number: u64| number.to_string()));
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let Reply::List(reply) = self.call(&command) else { panic!("a list") };
        let numbers: Vec<u64> = reply
            .into_iter()
            .map(|reply| match reply {
                Reply::Integer(number) => number,
                other => panic!("{other:?}"),
            })
            .collect();
        let (standings, rest) = numbers.as_chunks::<3>();
        assert_eq!((standings.len(), rest.len()), (asked.len(), 0));
        standings.iter().map(|it| standing(*it)).collect()
    }

    fn number(&mut self, command: &[&str]) -> u64 {
        match self.call(command) {
            Reply::Integer(number) => number,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn key(name: &str) -> Key {
    let ip = [127, 0, 0, 1].into();
    Key::of("r", LimitBy::Caller, 1, &Identity { caller: Some(name), tenant: None, ip })
}

fn quota(requests: u32, seconds: u64) -> Quota {
    let window = Duration::from_secs(seconds);
    Quota::of(&Limit { requests, window, by: LimitBy::Caller })
}

/// Which limits are asked after how many milliseconds; also where the clock is set back, a little or
/// far. Windows are minutes long: a key that the server drops by its own clock would be missed here.
fn schedules() -> impl Strategy<Value = Vec<(i64, BTreeMap<u8, u64>)>> {
    let step = prop_oneof![
        6 => 0_i64..2_400,
        2 => 0_i64..90_000,
        1 => -3_600_i64..0,
        1 => -240_000_i64..0,
    ];
    let limits = prop::collection::btree_map(0_u8..4, 60_u64..62, 1..4);
    prop::collection::vec((step, limits), 1..120)
}

#[test]
fn it_does_what_the_model_does() {
    let server = std::cell::RefCell::new(Server::start());
    let cases = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(200));
    let result = runner.run(&schedules(), |schedule| {
        let case = cases.replace(cases.get() + 1);
        // A moment of our days: what the script reckons with has to be exact up there.
        let mut now = 1_795_000_000_000_000_u64;
        let mut models: BTreeMap<(u8, u64), Model> = BTreeMap::new();
        for (step, limits) in schedule {
            now = now.saturating_add_signed(step * 1000 + step % 7);
            let limits: Vec<(u8, u64)> = limits.into_iter().collect();
            let asked: Vec<(Key, Quota)> = limits
                .iter()
                .map(|(name, seconds)| {
                    let key = key(&format!("{case}/{name}/{seconds}"));
                    (key, quota(u32::from(*name).pow(2) * 10 + 1, *seconds))
                })
                .collect();
            let found = server.borrow_mut().decide(&asked, Some(now));
            let mut may = Vec::new();
            for (limit, (_, quota)) in limits.iter().zip(&asked) {
                may.push(models.entry(*limit).or_default().may_pass(quota, now));
            }
            let allowed = may.iter().all(|may| *may);
            for (((limit, (_, quota)), may), found) in limits.iter().zip(&asked).zip(may).zip(found)
            {
                let model = models.entry(*limit).or_default();
                if allowed {
                    model.count(quota, now);
                }
                prop_assert_eq!(found, model.standing(quota, now, may));
            }
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn it_goes_by_the_servers_clock_and_leaves_nothing_behind() {
    let mut server = Server::start();
    let asked = [(key("a"), quota(2, 1))];
    let began = Instant::now();
    let [first] = server.decide(&asked, None)[..] else { panic!("one standing") };
    assert_eq!((first.allowed, first.remaining), (true, 1));
    let life = server.number(&["PTTL", &asked[0].0.to_string()]) * 1000;
    let since = began.elapsed().as_micros() as u64;
    assert!(life + since >= first.reset_after, "it ends no sooner than it may: {life} {first:?}");
    assert!((1_000_000..=1_010_000).contains(&first.reset_after), "{first:?}");
    server.decide(&asked, None);
    let [third] = server.decide(&asked, None)[..] else { panic!("one standing") };
    assert_eq!(third.remaining, 0);
    assert!(third.reset_after <= first.reset_after);
    while server.number(&["DBSIZE"]) > 0 {
        assert!(began.elapsed() < Duration::from_secs(10), "it expires");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn changes(server: &mut Server) -> String {
    let Reply::Text(info) = server.call(&["INFO", "persistence"]) else { panic!("a text") };
    let line = info.lines().find(|line| line.starts_with("rdb_changes_since_last_save:"));
    line.expect("it is counted").to_owned()
}

#[test]
fn a_call_that_is_refused_writes_nothing() {
    let mut server = Server::start();
    let asked = [(key("a"), quota(9, 60)), (key("b"), quota(1, 60))];
    let mut standings = || {
        let standings = server.decide(&asked, None);
        standings.iter().map(|it| (it.allowed, it.remaining)).collect::<Vec<_>>()
    };
    assert_eq!(standings(), [(true, 8), (true, 0)]);
    assert_eq!(standings(), [(true, 8), (false, 0)]);
    let before = changes(&mut server);
    server.decide(&asked, None);
    assert_eq!(changes(&mut server), before);
}

#[test]
fn names_tell_nothing_and_share_a_slot() {
    let name = name("portway", key("route"), key("ann"));
    assert_eq!(name, format!("portway:l:{{{}}}:{}", key("route"), key("ann")));
    assert_eq!(name.len(), "portway:l:{}:".len() + 64);
    assert!(!name.contains("ann"));
}
