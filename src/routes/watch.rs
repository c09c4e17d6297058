//! Tells when a file changes.
//!
//! Editors and Kubernetes do not write into the file: they rename a new one over it, or swap a
//! symbolic link some directories away. So the directories are watched, not the file, and a change
//! counts when the file's content is another than before. That also leaves out the noise of
//! neighbours.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::Duration,
};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

/// How long it has to be quiet before the file is looked at: a save is several events.
const QUIET: Duration = Duration::from_millis(100);

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    messages: Sender<Message>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // An error says that the thread has ended already.
        let _ = self.messages.send(Message::Stop);
    }
}

#[derive(Debug)]
enum Message {
    Changed,
    Stop,
}

/// Calls `on_change`, on a thread of its own, after the content of the file at `path` has changed;
/// a file that is gone has changed too. What happens before this returns is not noticed, so watch
/// first and read the file then.
pub fn watch(path: &Path, on_change: impl Fn() + Send + 'static) -> notify::Result<Watcher> {
    let path = std::path::absolute(path)?;
    let (messages, inbox) = channel();
    let events = messages.clone();
    let notifier = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // Reading the file is an event as well. An error may stand for lost events.
        if event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_))) {
            return;
        }
        // An error says that nobody listens any more.
        let _ = events.send(Message::Changed);
    })?;
    let mut directories = Directories { notifier, watched: HashSet::new() };
    directories.follow(&path)?;
    let content = fs::read(&path).ok();
    thread::Builder::new()
        .name("routes-watch".to_owned())
        .spawn(move || run(&path, content, directories, &inbox, on_change))?;
    Ok(Watcher { messages })
}

fn run(
    path: &Path,
    mut content: Option<Vec<u8>>,
    mut directories: Directories,
    inbox: &Receiver<Message>,
    on_change: impl Fn(),
) {
    while let Ok(Message::Changed) = inbox.recv() {
        loop {
            match inbox.recv_timeout(QUIET) {
                Ok(Message::Changed) => {}
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
        // A link may lead elsewhere now. Where that fails, its own directory is watched still.
        if let Err(error) = directories.follow(path) {
            tracing::warn!(%error, "cannot watch {}", path.display());
        }
        let now = fs::read(path).ok();
        if now != content {
            content = now;
            on_change();
        }
    }
}

/// The directories that a path depends on.
struct Directories {
    notifier: RecommendedWatcher,
    watched: HashSet<PathBuf>,
}

impl Directories {
    /// Watches the directory of `path`, and of every file it links to on the way.
    fn follow(&mut self, path: &Path) -> notify::Result<()> {
        let mut wanted: HashSet<PathBuf> = HashSet::new();
        wanted.extend(path.parent().map(Path::to_owned));
        let mut link = path.to_owned();
        // More steps than the kernel would take are a circle.
        for _ in 0..40 {
            let Ok(target) = fs::read_link(&link) else { break };
            link = link.parent().unwrap_or(Path::new("/")).join(target);
            wanted.extend(link.parent().map(Path::to_owned));
        }
        wanted.extend(
            fs::canonicalize(path).ok().as_deref().and_then(Path::parent).map(Path::to_owned),
        );
        for gone in self.watched.difference(&wanted) {
            // It may be deleted, and its watch with it.
            let _ = self.notifier.unwatch(gone);
        }
        let new: Vec<PathBuf> = wanted.difference(&self.watched).cloned().collect();
        self.watched = wanted;
        for directory in new {
            if let Err(error) = self.notifier.watch(&directory, RecursiveMode::NonRecursive) {
                self.watched.remove(&directory);
                return Err(error);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Far more than a notification takes: it is only waited for in full when a test fails.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Watches `path` and sends what is in it after each change.
    fn contents(path: &Path) -> (Watcher, Receiver<Option<String>>) {
        let (sender, receiver) = channel();
        let file = path.to_owned();
        let watcher = watch(path, move || {
            let _ = sender.send(fs::read_to_string(&file).ok());
        });
        (watcher.expect("the directory is there"), receiver)
    }

    fn next(receiver: &Receiver<Option<String>>) -> Option<String> {
        receiver.recv_timeout(PATIENCE).expect("a change is noticed")
    }

    #[test]
    fn a_renamed_file_and_a_written_one_are_noticed() {
        let directory = tempfile::tempdir().expect("a directory");
        let (file, new) = (directory.path().join("r.yaml"), directory.path().join("r.yaml.new"));
        fs::write(&file, "one").expect("written");
        let (_watcher, changes) = contents(&file);

        fs::write(&new, "two").expect("written");
        fs::rename(&new, &file).expect("renamed");
        assert_eq!(next(&changes).as_deref(), Some("two"));

        fs::write(&file, "three").expect("written");
        assert_eq!(next(&changes).as_deref(), Some("three"));

        fs::remove_file(&file).expect("removed");
        assert_eq!(next(&changes), None);

        fs::write(&file, "four").expect("written");
        assert_eq!(next(&changes).as_deref(), Some("four"));
    }

    #[test]
    fn a_swapped_link_is_noticed_as_in_a_config_map() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        for (version, text) in [("v1", "one"), ("v2", "two")] {
            fs::create_dir(at(version)).expect("created");
            fs::write(at(version).join("r.yaml"), text).expect("written");
        }
        symlink("v1", at("..data")).expect("linked");
        symlink("..data/r.yaml", at("r.yaml")).expect("linked");
        let (_watcher, changes) = contents(&at("r.yaml"));

        symlink("v2", at("..data_tmp")).expect("linked");
        fs::rename(at("..data_tmp"), at("..data")).expect("swapped");
        assert_eq!(next(&changes).as_deref(), Some("two"));

        // The new version's directory is watched from now on.
        fs::write(at("v2").join("r.yaml"), "three").expect("written");
        assert_eq!(next(&changes).as_deref(), Some("three"));
    }

    #[test]
    fn neighbours_and_equal_content_are_not_changes() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("r.yaml");
        fs::write(&file, "one").expect("written");
        let (_watcher, changes) = contents(&file);
        fs::write(directory.path().join("other"), "x").expect("written");
        fs::write(&file, "one").expect("written");
        // Longer than the quiet time, as there is nothing to wait for.
        assert!(changes.recv_timeout(QUIET * 5).is_err());
        fs::write(&file, "two").expect("written");
        assert_eq!(next(&changes).as_deref(), Some("two"));
    }

    #[test]
    fn a_dropped_watcher_ends_its_thread() {
        let directory = tempfile::tempdir().expect("a directory");
        let (watcher, changes) = contents(&directory.path().join("r.yaml"));
        drop(watcher);
        // The callback, and the sender in it, go with the thread.
        assert_eq!(changes.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
    }
}
