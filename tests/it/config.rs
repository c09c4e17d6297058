//! Settings: every mistake at once, by name, and exit code 64.

use crate::lab::{Answer, Gateway, Origin};

const GOOD: &str = "
upstreams:
  app: { targets: [http://127.0.0.1:1] }
routes:
  - { name: all, path: '/{*rest}', upstream: app }
";

#[test]
fn every_wrong_variable_is_reported_in_one_start() {
    let ended = Gateway::command(&["serve"])
        .env("PORT", "seventy")
        .env("SHUTDOWN_GRACE", "soon")
        .env("CACHE_L1_MAX_BYTES", "-1")
        .env("TRUSTED_PROXIES", "10.0.0.0/99")
        .run();
    assert_eq!(ended.code, Some(64), "{ended:?}");
    for name in ["PORT", "SHUTDOWN_GRACE", "CACHE_L1_MAX_BYTES", "TRUSTED_PROXIES"] {
        assert!(ended.stderr.contains(name), "{name} is missing in {}", ended.stderr);
    }
    assert!(ended.stderr.contains("seventy"), "the wrong value is shown: {}", ended.stderr);
}

#[test]
fn check_says_what_serve_would_say_and_exits_alike() {
    let bad = |args| Gateway::command(args).env("WORKERS", "0").env("LOG_FORMAT", "loud");
    let check = bad(&["check"]).run();
    let serve = bad(&["serve"]).run();
    assert_eq!((check.code, serve.code), (Some(64), Some(64)), "{check:?} {serve:?}");
    let said = format!("{}{}", check.stdout, check.stderr);
    assert!(said.contains("WORKERS") && said.contains("LOG_FORMAT"), "{said}");
}

#[test]
fn check_accepts_what_is_right() {
    let ended = Gateway::command_with_routes(&["check"], GOOD).run();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let bare = Gateway::command(&["check"]).run();
    assert_eq!(bare.code, Some(0), "an empty environment is right: {bare:?}");
}

#[test]
fn check_reports_variables_and_routes_together_with_line_numbers() {
    let routes = "\
upstreams:
  app: { targets: [ftp://127.0.0.1:1] }
routes:
  - { name: one, path: /one, upstream: nowhere }
  - { name: two, path: two, upstream: app }
";
    let ended = Gateway::command_with_routes(&["check"], routes).env("PORT", "99999").run();
    assert_eq!(ended.code, Some(64), "{ended:?}");
    let said = format!("{}{}", ended.stdout, ended.stderr);
    for part in ["PORT", "routes.yaml:2", "routes.yaml:4", "routes.yaml:5", "nowhere"] {
        assert!(said.contains(part), "{part} is missing in {said}");
    }
}

#[test]
fn an_unknown_key_in_the_routes_file_is_an_error_with_its_place() {
    let routes = GOOD.replace("upstream: app }", "upstream: app, cash: {} }");
    let ended = Gateway::command_with_routes(&["check"], &routes).run();
    assert_eq!(ended.code, Some(64), "{ended:?}");
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert!(said.contains("cash") && said.contains("routes.yaml:5"), "{said}");
}

#[test]
fn a_secret_is_never_printed() {
    let short = "tooshort-canary-5c1f";
    for args in [["check"], ["serve"]] {
        let ended = Gateway::command(&args)
            .env("ADMIN_HOST", "0.0.0.0")
            .env("ADMIN_TOKEN", short)
            .env("PORT", "x")
            .run();
        assert_eq!(ended.code, Some(64), "{ended:?}");
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains("ADMIN_TOKEN"), "{said}");
        assert!(!said.contains(short), "the token was printed: {said}");
    }
}

#[test]
fn a_password_in_an_upstream_url_is_never_printed() {
    let url = "http://user:canary-password-8b@127.0.0.1:99999/";
    let ended = Gateway::command(&["check"]).env("UPSTREAM_URL", url).run();
    assert_eq!(ended.code, Some(64), "{ended:?}");
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert!(said.contains("UPSTREAM_URL") && !said.contains("canary"), "{said}");
}

#[test]
fn an_open_admin_listener_needs_a_long_token() {
    let open = || Gateway::command(&["check"]).env("ADMIN_HOST", "0.0.0.0");
    assert_eq!(open().run().code, Some(64));
    assert_eq!(open().env("ADMIN_TOKEN", "a".repeat(31)).run().code, Some(64));
    assert_eq!(open().env("ADMIN_TOKEN", "a".repeat(32)).run().code, Some(0));
}

#[test]
fn an_upstream_url_and_a_routes_file_exclude_each_other() {
    let both = Gateway::command_with_routes(&["check"], GOOD).env("UPSTREAM_URL", "http://h:1");
    let ended = both.run();
    assert_eq!(ended.code, Some(64), "{ended:?}");
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert!(said.contains("ROUTES_FILE") && said.contains("UPSTREAM_URL"), "{said}");
}

#[test]
fn the_schema_is_valid_json_and_knows_the_file() {
    let ended = Gateway::command(&["schema"]).run();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let schema: serde_json::Value = serde_json::from_str(&ended.stdout).expect("it is JSON");
    let properties = &schema["properties"];
    assert!(properties["routes"].is_object() && properties["upstreams"].is_object(), "{schema}");
}

#[test]
fn an_unknown_command_is_refused() {
    assert_ne!(Gateway::command(&["sevre"]).run().code, Some(0));
}

#[tokio::test]
async fn values_in_the_routes_file_come_from_the_environment() {
    let origin =
        Origin::start(|seen| Answer::ok(seen.header("x-stage").unwrap_or("none").to_owned())).await;
    let routes = "
upstreams:
  app: { targets: ['${APP_URL}'] }
routes:
  - name: all
    path: '/{*rest}'
    upstream: app
    request: { set: { X-Stage: '${STAGE:-testing}' } }
";
    let gateway = Gateway::routing(routes).env("APP_URL", origin.url()).start().await;
    assert_eq!(gateway.get("/").await.text(), "testing");
    let unset = Gateway::command_with_routes(&["check"], routes).run();
    assert_eq!(unset.code, Some(64), "{unset:?}");
    assert!(format!("{}{}", unset.stdout, unset.stderr).contains("APP_URL"));
}

#[tokio::test]
async fn a_gateway_without_anything_set_starts() {
    let gateway = Gateway::command(&[]).start().await;
    assert_eq!(gateway.get("/health/live").await.status, 200);
    gateway.get("/anything").await.assert_problem(404, "no_route");
}
