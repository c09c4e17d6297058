//! The shape of the source: arrows between modules point one way, files stay readable, and nothing in
//! the repository depends on the machine it was written on.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

/// Left may name right. Modules in one row are neighbours and may not name each other.
const RANKS: &[&[&str]] = &[
    &["main"],
    &["demo"],
    &["app"],
    &["server"],
    &["admin"],
    &["proxy", "cache", "limits", "sql"],
    &["routes", "redis", "db"],
    &["config", "problem", "telemetry"],
];

/// Longest file, in lines. A longer one usually holds two things.
const LONGEST: usize = 450;

/// Files that may be longer, each with its reason beside it.
const LONGER: &[&str] = &[];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rank(module: &str) -> Option<usize> {
    RANKS.iter().position(|row| row.contains(&module))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).expect("the source is there");
    for entry in entries.map(|e| e.expect("it can be listed").path()) {
        if entry.is_dir() {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|e| e == "rs") {
            found.push(entry);
        }
    }
}

/// `src/cache/policy/range.rs` is `["cache", "policy", "range"]`; `src/lib.rs` is the root, `[]`.
fn module_path(file: &Path) -> Vec<String> {
    let inside = file.strip_prefix(root().join("src")).expect("it is below src");
    let mut parts: Vec<String> =
        inside.with_extension("").iter().map(|p| p.to_string_lossy().into_owned()).collect();
    if parts == ["lib"] {
        parts.clear();
    }
    parts
}

/// Splits source into identifiers, `::` and single characters, without comments and literals.
fn tokens(source: &str) -> Vec<String> {
    let bytes: Vec<char> = source.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    let starts = |at: usize, text: &str| {
        text.chars().enumerate().all(|(i, c)| bytes.get(at + i) == Some(&c))
    };
    while at < bytes.len() {
        let c = bytes[at];
        if starts(at, "//") {
            while at < bytes.len() && bytes[at] != '\n' {
                at += 1;
            }
        } else if starts(at, "/*") {
            while at < bytes.len() && !starts(at, "*/") {
                at += 1;
            }
            at += 2;
        } else if starts(at, "r\"") || starts(at, "r#") && !is_word(bytes.get(at + 2)) {
            let hashes = bytes[at + 1..].iter().take_while(|c| **c == '#').count();
            let end = format!("\"{}", "#".repeat(hashes));
            at += 2 + hashes;
            while at < bytes.len() && !starts(at, &end) {
                at += 1;
            }
            at += end.len();
        } else if c == '"' {
            at += 1;
            while at < bytes.len() && bytes[at] != '"' {
                at += if bytes[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if c == '\''
            && (bytes.get(at + 1) == Some(&'\\') || bytes.get(at + 2) == Some(&'\''))
        {
            // A character, not a lifetime; `'\''` has its end after the escape.
            at += if bytes[at + 1] == '\\' { 3 } else { 2 };
            while at < bytes.len() && bytes[at] != '\'' {
                at += 1;
            }
            at += 1;
        } else if starts(at, "::") {
            tokens.push("::".to_owned());
            at += 2;
        } else if is_word(Some(&c)) {
            let word: String = bytes[at..].iter().take_while(|c| is_word(Some(c))).collect();
            at += word.len();
            tokens.push(word);
        } else {
            if !c.is_whitespace() {
                tokens.push(c.to_string());
            }
            at += 1;
        }
    }
    tokens
}

fn is_word(c: Option<&char>) -> bool {
    c.is_some_and(|c| c.is_ascii_alphanumeric() || *c == '_')
}

/// The top-level modules that a file names, by `crate::`, `portway::` or enough `super::`.
fn named(source: &str, path: &[String]) -> BTreeSet<String> {
    let tokens = tokens(source);
    let mut found = BTreeSet::new();
    // For each open brace, whether it opened a module written inline: those add a `super`.
    let mut braces: Vec<bool> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let after = |i: usize| tokens.get(i).map_or("", String::as_str);
        match tokens[at].as_str() {
            "{" => braces.push(at >= 2 && after(at - 2) == "mod"),
            "}" => {
                braces.pop();
            }
            "crate" | "portway" if after(at + 1) == "::" => {
                heads(&tokens, at + 2, &mut found);
            }
            "super" => {
                let mut supers = 1;
                while after(at + 1) == "::" && after(at + 2) == "super" {
                    supers += 1;
                    at += 2;
                }
                let depth = path.len() + braces.iter().filter(|inline| **inline).count();
                if supers == depth && after(at + 1) == "::" {
                    heads(&tokens, at + 2, &mut found);
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// The first names of a path or of a `{…}` group that begins at `at`.
fn heads(tokens: &[String], at: usize, found: &mut BTreeSet<String>) {
    if tokens.get(at).is_none_or(|t| t != "{") {
        found.extend(tokens.get(at).cloned());
        return;
    }
    let mut depth = 0;
    let mut first = false;
    for token in &tokens[at..] {
        match token.as_str() {
            "{" => {
                depth += 1;
                first = depth == 1;
            }
            "}" => depth -= 1,
            "," => first = depth == 1,
            _ if first => {
                found.insert(token.clone());
                first = false;
            }
            _ => {}
        }
        if depth == 0 {
            return;
        }
    }
}

#[test]
fn every_arrow_points_one_way() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let path = module_path(&file);
        let Some(own) = path.first() else { continue };
        let shown = file.strip_prefix(root()).unwrap_or(&file).display();
        let Some(own_rank) = rank(own) else {
            wrong.push(format!("{shown}: module {own} has no rank"));
            continue;
        };
        let source = std::fs::read_to_string(&file).expect("it can be read");
        for other in named(&source, &path) {
            let modules = rank(&other).filter(|_| other != *own);
            if modules.is_some_and(|other_rank| other_rank <= own_rank) {
                wrong.push(format!("{shown}: {own} names {other}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_reader_of_arrows_sees_every_way_to_write_one() {
    let seen = |source: &str, path: &[&str]| {
        let path: Vec<String> = path.iter().map(|p| (*p).to_owned()).collect();
        named(source, &path).into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        seen("use crate::{proxy::{self, Client}, cache, routes::x};", &["a"]),
        "cache proxy routes"
    );
    assert_eq!(seen("fn f() { crate::server::run() }", &["a"]), "server");
    assert_eq!(seen("use super::super::server;", &["cache", "key"]), "server");
    assert_eq!(seen("use super::{entry, policy};", &["cache", "key"]), "");
    assert_eq!(seen("use super::proxy;", &["cache"]), "proxy");
    assert_eq!(seen("mod tests { use super::*; use super::super::proxy; }", &["cache"]), "proxy");
    assert_eq!(
        seen("// crate::proxy\nlet s = \"crate::proxy\"; let c = '\\''; 'a: loop {}", &["a"]),
        ""
    );
    assert_eq!(seen("let s = r#\"crate::proxy \"quoted\" \"#; crate::app::x", &["a"]), "app");
}

#[test]
fn no_file_is_too_long_to_read() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let mut long = Vec::new();
    for file in files {
        let shown = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
        let lines = std::fs::read_to_string(&file).expect("it can be read").lines().count();
        if lines > LONGEST && !LONGER.contains(&shown.as_str()) {
            long.push(format!("{shown}: {lines} lines"));
        }
    }
    assert!(long.is_empty(), "longer than {LONGEST} lines: {}", long.join(", "));
}

#[test]
fn nothing_in_the_repository_names_the_machine_it_was_written_on() {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let listed = listed.expect("git is installed");
    // A source archive has no history; there is nothing to list then.
    if !listed.status.success() {
        return;
    }
    // Written in two parts, or this file would find itself.
    let forbidden = [concat!("/wo", "rk/"), concat!("../sha", "red")];
    let mut found = Vec::new();
    for name in String::from_utf8_lossy(&listed.stdout).split('\0').filter(|n| !n.is_empty()) {
        let Ok(bytes) = std::fs::read(root().join(name)) else { continue };
        let text = String::from_utf8_lossy(&bytes);
        for word in forbidden.iter().filter(|word| text.contains(**word)) {
            found.push(format!("{name}: {word}"));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
