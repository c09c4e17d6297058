use std::{
    collections::HashSet,
    sync::{Condvar, Mutex},
    time::Instant,
};

use super::*;
use crate::telemetry::{access_log::line::tests::Owned, request_id};

/// An output in memory that can be held up.
#[derive(Clone, Default)]
struct Output(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    text: Vec<u8>,
    held: bool,
    broken: bool,
}

impl Output {
    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    fn lines(&self) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.0.0.lock().unwrap().text.clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Write for Output {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let state = self.0.0.lock().unwrap();
        let mut state = self.0.1.wait_while(state, |state| state.held).unwrap();
        if state.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        // In odd pieces, as a pipe may.
        let piece = text.len().min(1000);
        state.text.extend_from_slice(&text[..piece]);
        Ok(piece)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn start() -> (Arc<Sink>, Writer, Output) {
    let (sink, output) = (Sink::new(Format::Json), Output::default());
    let writer = Writer::spawn(Arc::clone(&sink), output.clone()).unwrap();
    (sink, writer, output)
}

fn wait_until(condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(20), "waited too long");
        thread::sleep(Duration::from_millis(2));
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn every_line_of_every_thread_is_written_once_and_whole() {
    let (sink, writer, output) = start();
    thread::scope(|scope| {
        for worker in 0..4 {
            let sink = &sink;
            scope.spawn(move || {
                let (owned, lane) = (Owned::new(), sink.lane());
                for line in 0..2000 {
                    let id = format!("{worker}.{line}").parse().unwrap();
                    let request_id = &request_id::accept_or_new(Some(&id));
                    let record = Record { request_id, ..owned.record() };
                    lane.write(sink, SystemTime::now(), &record);
                }
            });
        }
    });
    writer.stop(PATIENCE);
    let lines = output.lines();
    let ids: HashSet<_> = lines.iter().map(|line| line["request_id"].as_str().unwrap()).collect();
    assert_eq!((lines.len(), ids.len()), (8000, 8000));
    assert_eq!(sink.stats(), Stats { written: 8000, dropped: 0 });
}

#[test]
fn a_single_line_does_not_wait_for_more() {
    let (sink, writer, output) = start();
    let (owned, lane) = (Owned::new(), sink.lane());
    lane.write(&sink, SystemTime::now(), &owned.record());
    wait_until(|| output.lines().len() == 1);
    writer.stop(PATIENCE);
}

#[test]
fn lines_are_dropped_and_counted_when_the_output_does_not_move() {
    let (sink, writer, output) = start();
    output.set(|state| state.held = true);
    let (owned, lane) = (Owned::new(), sink.lane());
    // Longer than two buffers and what the writer holds.
    let path = "x".repeat(2000);
    let total = 5 * FULL_AT / path.len();
    for _ in 0..total {
        lane.write(&sink, SystemTime::now(), &Record { path: &path, ..owned.record() });
    }
    let dropped = sink.stats().dropped;
    assert!(dropped > 0);
    output.set(|state| state.held = false);
    writer.stop(PATIENCE);
    assert_eq!(sink.stats(), Stats { written: total as u64 - dropped, dropped });
    assert_eq!(output.lines().len() as u64, total as u64 - dropped);
}

#[test]
fn a_broken_output_is_counted_and_recovers() {
    let (sink, writer, output) = start();
    output.set(|state| state.broken = true);
    let (owned, lane) = (Owned::new(), sink.lane());
    lane.write(&sink, SystemTime::now(), &owned.record());
    wait_until(|| sink.stats().dropped == 1);
    output.set(|state| state.broken = false);
    lane.write(&sink, SystemTime::now(), &owned.record());
    writer.stop(PATIENCE);
    assert_eq!(sink.stats(), Stats { written: 1, dropped: 1 });
}

#[test]
fn stopping_does_not_wait_for_an_output_that_never_moves() {
    let (sink, writer, output) = start();
    output.set(|state| state.held = true);
    let (owned, lane) = (Owned::new(), sink.lane());
    lane.write(&sink, SystemTime::now(), &owned.record());
    let begin = Instant::now();
    writer.stop(Duration::from_millis(50));
    assert!(begin.elapsed() < Duration::from_secs(10));
    output.set(|state| state.held = false);
}

#[test]
fn a_lane_is_forgotten_after_its_thread_and_its_lines() {
    let (sink, writer, output) = start();
    let owned = Owned::new();
    let lane = sink.lane();
    lane.write(&sink, SystemTime::now(), &owned.record());
    drop(lane);
    wait_until(|| sink.lanes.lock().unwrap().is_empty());
    writer.stop(PATIENCE);
    assert_eq!(output.lines().len(), 1);
}

#[test]
fn a_line_finds_room_while_the_writer_holds_either_buffer() {
    let sink = Sink::new(Format::Json);
    let (owned, lane) = (Owned::new(), sink.lane());
    for held in &*lane.0 {
        let _held = held.lock().unwrap();
        lane.write(&sink, SystemTime::now(), &owned.record());
    }
    let counts: Vec<_> = lane.0.iter().map(|buffer| buffer.lock().unwrap().lines).collect();
    assert_eq!((counts, sink.stats().dropped), (vec![1, 1], 0));
}
