//! The least an actix-web server can do: answer from memory, nothing in front, nothing behind.
//!
//! `bench/compare` holds a cache hit against it. Whatever Portway costs above this handler is the
//! price of being a gateway: routing, the lookup, `Age`, `Cache-Status`, metrics. It therefore uses
//! the product's allocator and one worker, and sends the bytes and header fields that the
//! benchmark's origin sends (`bench/measure/origin.py` holds the other copy).
//!
//! `bare PORT DIR` serves the files of `DIR` whose name ends in `.json`, read once at the start.

use std::{collections::HashMap, io, path::Path};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, http::header, web};
use bytes::Bytes;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The bodies by request path.
type Files = HashMap<String, Bytes>;

async fn answer(request: HttpRequest, files: web::Data<Files>) -> HttpResponse {
    let Some(body) = files.get(request.path()) else { return HttpResponse::NotFound().finish() };
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "application/json"))
        .insert_header((header::LAST_MODIFIED, "Thu, 01 Jan 2026 00:00:00 GMT"))
        .insert_header((header::CACHE_CONTROL, "max-age=3600"))
        .insert_header((header::ETAG, "\"6955b900-400\""))
        .body(body.clone())
}

fn read(dir: &Path) -> io::Result<Files> {
    let mut files = Files::new();
    for entry in dir.read_dir()? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.ends_with(".json") {
            files.insert(format!("/{name}"), std::fs::read(&path)?.into());
        }
    }
    Ok(files)
}

#[actix_web::main]
async fn main() -> io::Result<()> {
    let usage = || io::Error::new(io::ErrorKind::InvalidInput, "usage: bare PORT DIR");
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().and_then(|port| port.parse().ok()).ok_or_else(usage)?;
    let files = read(Path::new(&arguments.next().ok_or_else(usage)?))?;
    let files = web::Data::new(files);
    HttpServer::new(move || App::new().app_data(files.clone()).default_service(web::to(answer)))
        .workers(1)
        .bind(("127.0.0.1", port))?
        .run()
        .await
}
