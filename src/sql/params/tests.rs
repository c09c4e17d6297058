use std::collections::BTreeMap;

use actix_http::header::HeaderValue;

use super::*;
use crate::routes::{Action, RouteTable, SqlRule};

fn rule(params: &str) -> SqlRule {
    let names: Vec<&str> =
        params.split('\n').map(|line| line.split(':').next().expect("a name")).collect();
    let uses: Vec<String> = names.iter().map(|name| format!(":{}", name.trim())).collect();
    let text = format!(
        "routes:\n  - name: r\n    path: /r/{{id}}\n    sql: {{ read: 'SELECT {}' }}\n    params:\n{}",
        uses.join(", "),
        params.lines().map(|line| format!("      {}\n", line.trim())).collect::<String>(),
    );
    let table = RouteTable::parse("r", &text, &BTreeMap::<String, String>::new());
    let table = table.unwrap_or_else(|errors| panic!("{errors}"));
    let Action::Sql(rule) = &table.routes[0].action else { panic!("not SQL") };
    (**rule).clone()
}

fn read_with(
    params: &str,
    query: &str,
    media_type: &str,
    body: &str,
) -> Result<Vec<Value>, Mistakes> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_str(media_type).expect("a value"));
    headers.insert(
        actix_http::header::HeaderName::from_static("x-count"),
        HeaderValue::from_static("3"),
    );
    let path = |name: &str| (name == "id").then(|| "7".to_owned());
    let input = Input {
        path: &path,
        query: Some(query),
        headers: &headers,
        body: body.as_bytes(),
        caller: None,
    };
    read(&rule(params).params, &input)
}

#[test]
fn values_come_from_everywhere() {
    let params = "id: path integer\nq: query text\nx: header:X-Count integer\nname: body text\ntags: body text[] optional";
    let values =
        read_with(params, "q=a+b&other=1", "application/json", r#"{"name":"n","tags":["x","y"]}"#);
    let text = |text: &str| Value::Text(text.into());
    let tags = Value::Array(vec![text("x"), text("y")]);
    assert_eq!(
        values,
        Ok(vec![Value::Integer(7), text("a b"), Value::Integer(3), text("n"), tags])
    );
}

#[test]
fn all_mistakes_are_told_at_once() {
    let params = "a: query integer\nb: query integer 1..5\nc: body text\nd: query uuid";
    let mistakes = read_with(params, "a=x&b=9&d=1&d=2", "application/json", "{}");
    let Err(Mistakes::Values { mistakes, readable }) = mistakes else { panic!("{mistakes:?}") };
    let names: Vec<_> = mistakes.iter().map(|it| (it.location, it.name.as_str())).collect();
    assert_eq!(names, [("query", "a"), ("query", "b"), ("body", "c"), ("query", "d")]);
    assert!(!readable);
}

#[test]
fn only_broken_rules_are_told_from_what_cannot_be_read() {
    let mistakes = read_with("b: query integer 1..5", "b=9", "", "");
    assert!(matches!(mistakes, Err(Mistakes::Values { readable: true, .. })), "{mistakes:?}");
}

#[test]
fn arrays_come_repeated_or_with_commas() {
    let numbers = Value::Array([1, 2, 3].map(Value::Integer).to_vec());
    assert_eq!(read_with("ids: query integer[]", "ids=1,2&ids=3", "", ""), Ok(vec![numbers]));
    assert_eq!(read_with("ids: query integer[]", "ids=", "", ""), Ok(vec![Value::Array(vec![])]));
}

#[test]
fn what_is_left_out_is_null_or_its_default() {
    let params = "a: query integer optional\nb: query integer = 5\nc: body text optional";
    let values = read_with(params, "", "application/json", r#"{"c":null}"#);
    assert_eq!(values, Ok(vec![Value::Null, Value::Integer(5), Value::Null]));
}

#[test]
fn bodies_are_json_objects_or_forms() {
    let name = Ok(vec![Value::Text("a b".into())]);
    assert_eq!(read_with("n: body text", "", "application/x-www-form-urlencoded", "n=a+b"), name);
    assert_eq!(
        read_with("n: body text", "", "application/json; charset=utf-8", "{\"n\":\"a b\"}"),
        name
    );
    assert_eq!(read_with("n: body text", "", "text/plain", "n"), Err(Mistakes::MediaType));
    for body in ["[1]", "{", "7"] {
        let mistakes = read_with("n: body text", "", "application/json", body);
        let Err(Mistakes::Values { mistakes, .. }) = mistakes else { panic!("{mistakes:?}") };
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    }
}

#[test]
fn without_a_caller_a_route_that_needs_one_is_not_run() {
    assert_eq!(read_with("t: caller:tenant text", "", "", ""), Err(Mistakes::NoCaller));
}
