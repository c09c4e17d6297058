//! `portway check --database`: statements that do not fit the schema are found before requests find them.

use super::{ROUTES, SCHEMA, postgres, sqlite};
use crate::lab::Gateway;

/// Routes of which each but the last does not fit the schema.
const UNFIT: &str = r#"
routes:
  - { name: table, path: /a, sql: { read: SELECT 1 FROM nowhere } }
  - { name: column, path: /b, sql: { read: SELECT colour FROM products } }
  - name: key
    path: /c
    sql: { read: SELECT name FROM products, page: { keys: [id integer] } }
  - name: types
    path: /d/{id}
    params: { id: path uuid, least: query number, names: "query integer[]" }
    sql: { read: "SELECT id FROM products WHERE id = :id AND price > :least AND name = ANY(:names)" }
  - name: fits
    path: /e/{id}
    methods: [PUT]
    params: { id: path integer, details: body json, at: body timestamp }
    sql: { write: "UPDATE products SET details = :details, made_at = :at WHERE id = :id" }
"#;

#[tokio::test]
async fn check_names_every_statement_that_does_not_fit_the_schema() {
    let (_server, url) = postgres(SCHEMA).await;
    let check = |routes: &str| {
        Gateway::command_with_routes(&["check", "--database"], routes)
            .env("DATABASE_URL", url.clone())
            .run()
    };
    let ended = check(UNFIT);
    assert_eq!(ended.code, Some(64), "{ended:?}");
    for part in [
        "route `table`: relation \"nowhere\" does not exist",
        "route `column`: column \"colour\" does not exist",
        "route `key`: column portway_rows.id does not exist",
        "route `types`: parameter `id` is declared uuid, and the statement wants int8 here",
        "route `types`: parameter `names` is declared integer[], and the statement wants text[] here",
    ] {
        assert!(ended.stderr.contains(part), "{part} is missing in {}", ended.stderr);
    }
    assert_eq!(ended.stderr.lines().count(), 5, "{}", ended.stderr);
    let fits = UNFIT[UNFIT.find("  - name: fits").expect("it is there")..].to_owned();
    for routes in [format!("routes:\n{fits}"), ROUTES.replace("secret_column", "name")] {
        let ended = check(&routes);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.stdout.contains("statements that fit"), "{}", ended.stdout);
    }
}

#[tokio::test]
async fn check_reads_an_embedded_schema_and_makes_no_file() {
    let builder = Gateway::command_with_routes(&["check", "--database"], UNFIT);
    sqlite(&builder, SCHEMA).await;
    let ended = builder.run();
    assert_eq!(ended.code, Some(64), "{ended:?}");
    for route in ["table", "column", "key"] {
        assert!(ended.stderr.contains(&format!("route `{route}`")), "{}", ended.stderr);
    }
    assert!(!ended.stderr.contains("route `fits`"), "{}", ended.stderr);

    let builder = Gateway::command_with_routes(&["check", "--database"], UNFIT);
    let file = builder.dir().join("portway.db");
    let ended = builder.run();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("cannot be asked") && !file.exists(), "{ended:?}");
}
