//! `portway demo`: the first minute with the gateway. What it prints must work as printed.

use crate::lab::{Gateway, Request, Response, SOON, wait_for};

/// A `curl` line, taken apart as a shell would.
struct Curl {
    authority: String,
    request: Request,
}

/// Splits on blanks outside quotes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in line.chars() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(q), c) if q == c => quote = None,
            (None, c) if c.is_whitespace() => words.push(std::mem::take(&mut word)),
            (_, c) => word.push(c),
        }
    }
    words.push(word);
    words.retain(|w| !w.is_empty());
    words
}

fn curl(line: &str) -> Option<Curl> {
    let mut words = words(&line[line.find("curl ")?..]).into_iter().skip(1);
    let (mut method, mut url, mut body, mut headers) = (None, None, None, Vec::new());
    while let Some(word) = words.next() {
        match word.as_str() {
            "-X" | "--request" => method = words.next(),
            "-H" | "--header" => headers.push(words.next()?),
            "-d" | "--data" => body = words.next(),
            _ if word.starts_with("http://") => url = Some(word),
            "#" => break,
            _ => {}
        }
    }
    let url = url?;
    let (authority, target) = url.strip_prefix("http://")?.split_at(url[7..].find('/')?);
    let method = method.unwrap_or_else(|| if body.is_some() { "POST" } else { "GET" }.to_owned());
    let mut request = Request::new(&method, target);
    for header in headers {
        let (name, value) = header.split_once(':')?;
        request = request.header(name, value.trim());
    }
    if let Some(body) = body {
        request = request.body(body);
    }
    Some(Curl { authority: authority.to_owned(), request })
}

#[tokio::test]
async fn the_printed_lines_show_a_miss_a_hit_a_write_and_the_fresh_read() {
    let builder = Gateway::command(&["demo"]);
    let place = builder.dir().to_owned();
    let mut demo = builder.env("TMPDIR", place.to_string_lossy()).start_unseen();
    let lines = wait_for("the curl lines are printed", SOON, || async {
        let printed = demo.log.lines();
        let all = printed.iter().any(|line| line.contains("Ctrl-C"));
        all.then(|| printed.iter().filter_map(|l| curl(l)).collect::<Vec<Curl>>())
    })
    .await;
    let left_behind = || std::fs::read_dir(&place).expect("it is there").count();
    assert_eq!(left_behind(), 1, "the database is where temporary things are");
    let mut answers: Vec<(String, Response)> = Vec::new();
    for line in &lines {
        let addr = line.authority.replace("localhost", "127.0.0.1").parse().unwrap();
        let response = line.request.send(addr).await.unwrap();
        let shown = format!("{} {}", line.request.method, line.request.target);
        assert!(response.status < 400, "{shown}: {} {}", response.status, response.text());
        answers.push((shown, response));
    }
    // One from the sample origin, one from the database.
    for path in ["/api/products/1", "/api/stock/1"] {
        let told: Vec<&Response> =
            answers.iter().filter(|(shown, _)| shown.contains(path)).map(|(_, it)| it).collect();
        let outcomes: Vec<String> = told.iter().map(|response| response.x_cache()).collect();
        assert_eq!(outcomes, ["MISS", "HIT", "BYPASS", "MISS"], "{path}");
        assert_eq!(told[0].body, told[1].body);
        assert_ne!(told[3].body, told[1].body, "the read shows the write");
    }
    assert_eq!(demo.stop().await.code(), Some(0));
    assert_eq!(left_behind(), 0, "the database is gone with the demo");
}

#[test]
fn a_curl_line_is_read_as_a_shell_reads_it() {
    let line = "  curl -si -X PUT http://127.0.0.1:8080/a?b -H 'X-A: b c' -d '{\"n\": 1}'";
    let Curl { authority, request } = curl(line).unwrap();
    assert_eq!((authority.as_str(), request.target.as_str()), ("127.0.0.1:8080", "/a?b"));
    assert_eq!(request.method, "PUT");
    assert_eq!(request.headers, [("X-A".to_owned(), "b c".to_owned())]);
    assert_eq!(request.body.as_deref(), Some(&b"{\"n\": 1}"[..]));
}
