//! A statement as the routes file has it: where its parameters are, and what kind of statement it is.
//!
//! This is not a parser: it knows comments, strings and quoted names, so as not to look into them, and a
//! few words. What a statement does is for the database to say.

use std::ops::Range;

/// What the statement, after its own `WITH` list, begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `SELECT`, `VALUES`, `TABLE`: gives rows.
    Select,
    /// `INSERT`, `UPDATE`, `DELETE`, `MERGE`: gives rows only with `RETURNING`.
    Change,
    Other,
}

/// A statement with named parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlText {
    source: Box<str>,
    /// Where parameters stand, and which they are.
    uses: Vec<(Range<usize>, usize)>,
    /// Where the statement begins after its own `WITH` list; 0 without one.
    main: usize,
    verb: Verb,
    returning: bool,
}

impl SqlText {
    /// Reads a statement; `names` are the parameters it may use. The error says what is wrong.
    pub(super) fn parse(text: &str, names: &[&str]) -> Result<Self, String> {
        let source = text.trim().trim_end_matches(';').trim_end();
        let mut uses = Vec::new();
        let (mut main, mut verb, mut returning) = (0, None, false);
        let mut with = false;
        for Token { kind, range, depth } in tokens(source)? {
            let text = &source[range.clone()];
            match kind {
                Kind::Param => {
                    let name = &text[1..];
                    let index = names.iter().position(|known| *known == name);
                    uses.push((range, index.ok_or(format!("`{text}` is not in `params`"))?));
                }
                Kind::Word if depth == 0 => {
                    let word = text.to_ascii_lowercase();
                    returning |= word == "returning";
                    if verb.is_some() {
                        continue;
                    }
                    match word.as_str() {
                        "with" if !with => with = true,
                        "select" | "values" | "table" => {
                            (verb, main) = (Some(Verb::Select), range.start);
                        }
                        "insert" | "update" | "delete" | "merge" | "replace" => {
                            (verb, main) = (Some(Verb::Change), range.start);
                        }
                        _ if with => {}
                        _ => verb = Some(Verb::Other),
                    }
                }
                Kind::Symbol if text == ";" => {
                    return Err("there is more than one statement: expected one".to_owned());
                }
                // `(SELECT …) UNION (SELECT …)`
                Kind::Symbol if text == "(" && depth == 1 && verb.is_none() && !with => {
                    verb = Some(Verb::Select);
                }
                Kind::Word | Kind::Symbol | Kind::Opaque => {}
            }
        }
        let Some(verb) = verb else { return Err("expected a statement".to_owned()) };
        for (index, name) in names.iter().enumerate() {
            if !uses.iter().any(|(_, used)| *used == index) {
                return Err(format!("the parameter `{name}` is not used"));
            }
        }
        let main = if with { main } else { 0 };
        Ok(Self { source: source.into(), uses, main, verb, returning })
    }

    pub fn verb(&self) -> Verb {
        self.verb
    }

    /// Whether it has a `RETURNING` clause of its own.
    pub fn returning(&self) -> bool {
        self.returning
    }

    /// Its own `WITH` list, with the word; empty without one.
    pub fn with_list(&self, marker: impl Fn(usize) -> String) -> String {
        self.render(0..self.main, marker)
    }

    /// The statement without its `WITH` list.
    pub fn main(&self, marker: impl Fn(usize) -> String) -> String {
        self.render(self.main..self.source.len(), marker)
    }

    /// All of it, with `marker` in place of each parameter.
    pub fn whole(&self, marker: impl Fn(usize) -> String) -> String {
        self.render(0..self.source.len(), marker)
    }

    fn render(&self, range: Range<usize>, marker: impl Fn(usize) -> String) -> String {
        let mut text = String::new();
        let mut at = range.start;
        for (used, index) in self.uses.iter().filter(|(used, _)| range.contains(&used.start)) {
            text.push_str(&self.source[at..used.start]);
            text.push_str(&marker(*index));
            at = used.end;
        }
        text.push_str(&self.source[at..range.end]);
        text
    }

    /// A function that it calls and that does more than read, though a read-only session lets it: what it
    /// does would depend on the node that the statement happens to run on.
    pub(super) fn effect(&self) -> Option<String> {
        let tokens = tokens(&self.source).ok()?;
        tokens.windows(2).find_map(|pair| {
            let called = &self.source[pair[1].range.clone()] == "(";
            let name = self.source[pair[0].range.clone()].trim_matches('"').to_ascii_lowercase();
            (called && pair[0].kind != Kind::Symbol && has_effect(&name)).then_some(name)
        })
    }
}

/// Functions of PostgreSQL and SQLite, by their own name or how it begins.
fn has_effect(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "set_config",
        "pg_notify",
        "txid_current",
        "pg_current_xact_id",
        "pg_logical_emit_message",
        "pg_reload_conf",
        "pg_rotate_logfile",
        "pg_switch_wal",
        "pg_promote",
        "pg_terminate_backend",
        "pg_cancel_backend",
        "lo_creat",
        "lo_create",
        "lo_import",
        "lo_export",
        "lo_from_bytea",
        "lo_put",
        "lo_open",
        "lo_unlink",
        "lo_truncate",
        "lowrite",
        "load_extension",
    ];
    const BEGINNINGS: &[&str] = &[
        "pg_advisory_",
        "pg_try_advisory_",
        "pg_wal_replay_",
        "pg_replication_",
        "pg_create_",
        "pg_drop_",
        "pg_stat_reset",
        "dblink",
    ];
    NAMES.contains(&name) || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A bare word: a keyword or a name.
    Word,
    /// `:name`.
    Param,
    /// One character that is none of the others.
    Symbol,
    /// A string, a quoted name, a number, a cast.
    Opaque,
}

#[derive(Debug)]
struct Token {
    kind: Kind,
    range: Range<usize>,
    /// Parentheses and brackets around it; of one of them, with itself.
    depth: usize,
}

/// Splits a statement; comments and spaces are left out.
fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let bytes = text.as_bytes();
    let mut tokens: Vec<Token> = Vec::new();
    let mut open: Vec<u8> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let next = bytes.get(at + 1).copied();
        let kind = match bytes[at] {
            byte if byte.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b'-' if next == Some(b'-') => {
                at = text[at..].find('\n').map_or(bytes.len(), |end| at + end);
                continue;
            }
            b'/' if next == Some(b'*') => {
                at = end_of_comment(bytes, at).ok_or("a comment has no end")?;
                continue;
            }
            quote @ (b'\'' | b'"' | b'`') => {
                at = end_of_quoted(bytes, at, quote, false).ok_or("a quote has no end")?;
                Kind::Opaque
            }
            b'$' if next.is_some_and(|byte| byte.is_ascii_digit()) => {
                return Err("parameters are written `:name`, not `$1`".to_owned());
            }
            b'$' if let Some(tag) = dollar_tag(text, at) => {
                let body = at + tag.len();
                let end = text[body..].find(tag).ok_or("a dollar-quoted text has no end")?;
                at = body + end + tag.len();
                Kind::Opaque
            }
            byte if is_name_start(byte) => {
                at = end_of_name(bytes, at);
                let escaped = at == start + 1 && byte.eq_ignore_ascii_case(&b'e');
                if escaped && bytes.get(at) == Some(&b'\'') {
                    at = end_of_quoted(bytes, at, b'\'', true).ok_or("a quote has no end")?;
                    Kind::Opaque
                } else {
                    Kind::Word
                }
            }
            byte if byte.is_ascii_digit() => {
                at = end_of_name(bytes, at);
                Kind::Opaque
            }
            b':' if next == Some(b':') => {
                at += 2;
                Kind::Opaque
            }
            b':' if next.is_some_and(is_name_start) && !in_slice(text, &tokens, &open) => {
                at = end_of_name(bytes, at + 1);
                Kind::Param
            }
            byte => {
                // A character outside ASCII belongs to a name, which is taken whole above.
                at += 1;
                match byte {
                    b'(' | b'[' => open.push(byte),
                    b')' | b']' => {
                        open.pop();
                    }
                    _ => {}
                }
                Kind::Symbol
            }
        };
        tokens.push(Token { kind, range: start..at, depth: open.len() });
    }
    Ok(tokens)
}

fn is_name_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || !byte.is_ascii()
}

fn end_of_name(bytes: &[u8], from: usize) -> usize {
    let more = |byte: &u8| byte.is_ascii_alphanumeric() || b"_$".contains(byte) || !byte.is_ascii();
    from + bytes[from..].iter().take_while(|byte| more(byte)).count()
}

/// Comments nest, as in PostgreSQL.
fn end_of_comment(bytes: &[u8], from: usize) -> Option<usize> {
    let mut depth = 0;
    let mut at = from;
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// A doubled quote stands for one; with `backslash`, so does one after a backslash.
fn end_of_quoted(bytes: &[u8], from: usize, quote: u8, backslash: bool) -> Option<usize> {
    let mut at = from + 1;
    loop {
        match *bytes.get(at)? {
            b'\\' if backslash => at += 2,
            byte if byte != quote => at += 1,
            _ if bytes.get(at + 1) == Some(&quote) => at += 2,
            _ => return Some(at + 1),
        }
    }
}

/// `$$` or `$name$` at `at`.
fn dollar_tag(text: &str, at: usize) -> Option<&str> {
    let end = text[at + 1..].find('$')? + at + 1;
    let name = &text[at + 1..end];
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii();
    let begins = name.bytes().next().is_none_or(is_name_start);
    (begins && name.bytes().all(legal)).then(|| &text[at..=end])
}

/// Whether a colon here separates the bounds of a slice, as in `a[1:n]`, and not one parameter of
/// `ARRAY[:a, :b]`.
fn in_slice(text: &str, tokens: &[Token], open: &[u8]) -> bool {
    let after_operand = tokens.last().is_some_and(|token| {
        token.kind != Kind::Symbol || matches!(&text[token.range.clone()], ")" | "]")
    });
    open.last() == Some(&b'[') && after_operand
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rendered(text: &str, names: &[&str]) -> String {
        SqlText::parse(text, names).expect(text).whole(|index| format!("<{index}>"))
    }

    #[test]
    fn parameters_are_found_and_nothing_else_is_touched() {
        for (text, expected) in [
            ("SELECT :a, :b, :a", "SELECT <0>, <1>, <0>"),
            ("SELECT :a::int, ':a', \":a\", :b", "SELECT <0>::int, ':a', \":a\", <1>"),
            ("SELECT 'it''s :a', E'\\':a', :a, :b", "SELECT 'it''s :a', E'\\':a', <0>, <1>"),
            ("SELECT :a -- :b\n, :b", "SELECT <0> -- :b\n, <1>"),
            ("SELECT :a /* :b /* :b */ :b */, :b", "SELECT <0> /* :b /* :b */ :b */, <1>"),
            ("SELECT $$:a$$, $q$ :a $$ :b$q$, :a, :b", "SELECT $$:a$$, $q$ :a $$ :b$q$, <0>, <1>"),
            ("SELECT x[1:b], ARRAY[:a, :b], x[:a:b]", "SELECT x[1:b], ARRAY[<0>, <1>], x[<0>:b]"),
            ("SELECT :a,:b ;  ", "SELECT <0>,<1>"),
        ] {
            assert_eq!(rendered(text, &["a", "b"]), expected);
        }
    }

    #[test]
    fn a_statement_that_cannot_be_meant_is_refused() {
        for (text, words) in [
            ("", "expected a statement"),
            ("SELECT 1; SELECT 2", "more than one"),
            ("SELECT :other", "`:other`"),
            ("SELECT $1, :a", "`:name`"),
            ("SELECT 'open, :a", "no end"),
            ("SELECT /* open, :a", "no end"),
            ("SELECT $x$ open, :a", "no end"),
            ("SELECT 1", "`a` is not used"),
        ] {
            let error = SqlText::parse(text, &["a"]).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn the_kind_of_a_statement_is_that_after_its_with_list() {
        for (text, verb, returning, with_list) in [
            ("select 1", Verb::Select, false, ""),
            ("(select 1) union (select 2)", Verb::Select, false, ""),
            ("VALUES (1)", Verb::Select, false, ""),
            ("WITH a AS (SELECT 1) SELECT * FROM a", Verb::Select, false, "WITH a AS (SELECT 1) "),
            (
                "with a as (select 1) update t set x = 1 returning x",
                Verb::Change,
                true,
                "with a as (select 1) ",
            ),
            ("insert into t values ('returning')", Verb::Change, false, ""),
            ("delete from t where id in (delete from u returning id)", Verb::Change, false, ""),
            ("CALL p()", Verb::Other, false, ""),
        ] {
            let parsed = SqlText::parse(text, &[]).expect(text);
            assert_eq!((parsed.verb(), parsed.returning()), (verb, returning), "{text}");
            assert_eq!(parsed.with_list(|_| String::new()), with_list);
        }
    }

    #[test]
    fn functions_that_a_read_only_session_lets_through_are_named() {
        for text in [
            "SELECT set_config('a', 'b', false)",
            "SELECT pg_catalog.PG_NOTIFY ('a', 'b')",
            "SELECT \"pg_advisory_lock\"(1)",
            "SELECT * FROM dblink_exec('x')",
        ] {
            assert!(SqlText::parse(text, &[]).expect(text).effect().is_some(), "{text}");
        }
        for text in
            ["SELECT set_config FROM t", "SELECT 'set_config('", "SELECT lower(name) FROM t"]
        {
            assert_eq!(SqlText::parse(text, &[]).expect(text).effect(), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in r"[:$'\x22/*\-eE\\\[\](); a-cö0-9]{0,60}") {
            let _ = SqlText::parse(&text, &["a", "b"]);
        }

        #[test]
        fn what_is_quoted_stays_as_it_is(inner in "[a-z:; ]{0,20}", quote in 0..4_usize) {
            let quoted = match quote {
                0 => format!("'{inner}'"),
                1 => format!("\"{inner}\""),
                2 => format!("$t${inner}$t$"),
                _ => format!("/*{inner}*/ 1"),
            };
            let text = format!("SELECT {quoted}, :a");
            prop_assert_eq!(rendered(&text, &["a"]), format!("SELECT {quoted}, <0>"));
        }
    }
}
