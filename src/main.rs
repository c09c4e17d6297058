//! The `portway` command: reads the settings, runs what was asked, and waits for signals.

use std::{io::Write as _, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use portway::{
    app::App,
    config::{Config, Environment, LogFormat},
    db::Db,
    demo::Demo,
    routes::{self, RouteTable},
    sql::{self, CheckError},
    telemetry,
};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Settings or a routes file that cannot be used (`EX_USAGE` of sysexits.h).
const BAD_CONFIGURATION: u8 = 64;

/// An API gateway with a correct, coherent response cache, in one binary.
///
/// Settings come from the environment; `.env.example` lists them.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve (the default).
    Serve,
    /// Start a sample origin and a gateway in front of it, and show what to try.
    Demo,
    /// Read the environment and the routes file, and print every mistake. Touches no network.
    Check {
        /// Also prepare the statements of SQL routes on the database, without running them.
        #[arg(long)]
        database: bool,
    },
    /// Apply the migrations to the primary of the database.
    Migrate,
    /// Print the JSON Schema of the routes file.
    Schema,
}

fn main() -> ExitCode {
    match Cli::parse().command.unwrap_or(Command::Serve) {
        Command::Serve => configured(serve),
        Command::Demo => demo(),
        Command::Check { database } => configured(|config, table| check(&config, &table, database)),
        Command::Migrate => migrate(),
        Command::Schema => {
            print(&format!("{:#}", routes::json_schema()));
            ExitCode::SUCCESS
        }
    }
}

/// Prints a text; whoever reads it may have seen enough and gone.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Reads everything, reports every mistake, and goes on only if there is none.
fn configured(run: impl FnOnce(Config, RouteTable) -> ExitCode) -> ExitCode {
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            // The routes file may have mistakes too: show them in the same go.
            if let Some(Err(errors)) = std::env::var_os("ROUTES_FILE")
                .filter(|file| !file.is_empty())
                .map(|file| RouteTable::load(file.as_ref(), &Environment))
            {
                eprintln!("{errors}");
            }
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    match table(&config) {
        Ok(table) => run(config, table),
        Err(errors) => {
            eprintln!("{errors}");
            ExitCode::from(BAD_CONFIGURATION)
        }
    }
}

fn check(config: &Config, table: &RouteTable, database: bool) -> ExitCode {
    let mut found =
        format!("ok: {} routes, {} upstreams", table.routes.len(), table.upstreams.len());
    if database {
        match block_on(sql::check(table, &config.database)) {
            Ok(statements) => found.push_str(&format!(", {statements} statements that fit")),
            Err(error) => {
                eprintln!("{error}");
                return match error {
                    CheckError::Mistakes(_) => ExitCode::from(BAD_CONFIGURATION),
                    CheckError::Unreachable { .. } => ExitCode::FAILURE,
                };
            }
        }
    }
    print(&found);
    ExitCode::SUCCESS
}

fn table(config: &Config) -> Result<RouteTable, routes::RouteErrors> {
    match (&config.routes.file, &config.routes.upstream_url) {
        (Some(file), _) => RouteTable::load(file, &Environment),
        (None, Some(url)) => Ok(RouteTable::single_upstream(url)),
        (None, None) => Ok(RouteTable::default()),
    }
}

fn serve(config: Config, table: RouteTable) -> ExitCode {
    let _flush = match start_logging(&config) {
        Ok(guard) => guard,
        Err(error) => {
            eprintln!("RUST_LOG: {error}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    if table.routes.is_empty() {
        tracing::warn!("nothing is routed: set UPSTREAM_URL or ROUTES_FILE, or try `portway demo`");
    }
    run(async move {
        let app = App::build(config, table)?;
        app.run_until(stop()).await
    })
}

fn migrate() -> ExitCode {
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    run(async move {
        let db = Db::start(&config.database)?;
        let applied = db.migrate().await?;
        if applied.is_empty() {
            print("nothing to apply");
        }
        for name in applied {
            print(&format!("applied {name}"));
        }
        db.close(Duration::ZERO).await;
        Ok(())
    })
}

fn demo() -> ExitCode {
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let _flush = match start_logging(&config) {
        Ok(guard) => guard,
        Err(error) => {
            eprintln!("RUST_LOG: {error}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    run(async {
        let demo = Demo::start().await?;
        print(&demo.guide());
        demo.run_until(stop()).await
    })
}

fn start_logging(config: &Config) -> Result<telemetry::Guard, telemetry::InitError> {
    let format = match config.log.format {
        LogFormat::Pretty => telemetry::Format::Pretty,
        LogFormat::Json => telemetry::Format::Json,
    };
    telemetry::init(format, &config.log.filter)
}

fn block_on<T>(task: impl Future<Output = T>) -> T {
    // Which crypto provider TLS uses is decided here once, and never by what a dependency drags in.
    // It can only fail if one is installed already, which then is this one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    actix_web::rt::System::new().block_on(task)
}

fn run(task: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    match block_on(task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portway: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Resolves at the first SIGTERM or SIGINT; the second ends the process at once.
async fn stop() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without handlers the signals keep their default effect: they end the process.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::warn!("stopped at once by a second signal");
        std::process::exit(130);
    });
}
