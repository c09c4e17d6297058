//! A client of Redis's protocol as small as the tests need: a connection for each command.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

/// A server that hangs is asked no longer than this.
const PATIENCE: Duration = Duration::from_secs(5);

/// What Redis answered; its errors are not among these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Nil,
    Integer(i64),
    Bytes(Vec<u8>),
    Array(Vec<Reply>),
}

impl Reply {
    /// Nested answers are put a line each, nothing is empty.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Nil => String::new(),
            Self::Integer(number) => number.to_string(),
            Self::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Array(items) => items.iter().map(Self::text).collect::<Vec<_>>().join("\n"),
        }
    }

    /// The strings of a flat array.
    pub(crate) fn strings(&self) -> Vec<Vec<u8>> {
        match self {
            Self::Array(items) => items.iter().flat_map(Self::strings).collect(),
            Self::Bytes(bytes) => vec![bytes.clone()],
            Self::Nil => Vec::new(),
            Self::Integer(number) => vec![number.to_string().into_bytes()],
        }
    }
}

/// Opens a connection, authenticates, runs one command.
pub(super) async fn ask(
    addr: SocketAddr,
    password: Option<String>,
    command: Vec<Vec<u8>>,
) -> Result<Reply, String> {
    let whole = async {
        let mut stream = BufReader::new(TcpStream::connect(addr).await?);
        if let Some(password) = password {
            let auth = vec![b"AUTH".to_vec(), password.into_bytes()];
            stream.write_all(&encoded(&auth)).await?;
            read(&mut stream).await?;
        }
        stream.write_all(&encoded(&command)).await?;
        read(&mut stream).await
    };
    match tokio::time::timeout(PATIENCE, whole).await {
        Ok(answer) => answer.map_err(|e| e.to_string()),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

fn encoded(command: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for word in command {
        bytes.extend(format!("${}\r\n", word.len()).into_bytes());
        bytes.extend(word);
        bytes.extend(b"\r\n");
    }
    bytes
}

async fn read(stream: &mut BufReader<TcpStream>) -> io::Result<Reply> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let rest = line.get(1..).unwrap_or_default().trim_end();
    let number = || rest.parse::<i64>().map_err(io::Error::other);
    match line.as_bytes().first() {
        Some(b'+') => Ok(Reply::Bytes(rest.as_bytes().to_vec())),
        Some(b'-') => Err(io::Error::other(rest.to_owned())),
        Some(b':') => Ok(Reply::Integer(number()?)),
        Some(b'$' | b'*') if number()? < 0 => Ok(Reply::Nil),
        Some(b'$') => {
            let mut bytes = vec![0; number()? as usize + 2];
            stream.read_exact(&mut bytes).await?;
            bytes.truncate(bytes.len() - 2);
            Ok(Reply::Bytes(bytes))
        }
        Some(b'*') => {
            let mut items = Vec::new();
            for _ in 0..number()? {
                items.push(Box::pin(read(stream)).await?);
            }
            Ok(Reply::Array(items))
        }
        _ => Err(io::Error::other(format!("not an answer: {line:?}"))),
    }
}
