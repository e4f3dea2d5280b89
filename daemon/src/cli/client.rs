//! Asks the running daemon: HTTP/1.1 and JSON over the Unix socket in its data folder.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::admin::{BLOBS_HEADER, IMAGES_HEADER, TAIL_HEADER};

/// A million tags are less than half of it.
const ANSWER_SIZE_MAX: usize = 512 * 1024 * 1024;
const SOCKET: &str = "larder.sock";
/// Bytes of a file sent at a time.
const PIECE_SIZE: usize = 256 << 10;

/// The daemon, wherever it is.
#[derive(Debug)]
pub(super) struct Client {
    folders: Vec<PathBuf>,
}

/// What the daemon answered.
#[derive(Debug)]
pub(super) struct Answer {
    text: Bytes,
    question: String,
}

/// A file that the daemon makes.
#[derive(Debug)]
pub(super) struct Download {
    /// Bytes.
    pub(super) size: u64,
    /// Images in it.
    pub(super) images: u64,
    /// Blobs in it.
    pub(super) blobs: u64,
    body: Incoming,
    question: String,
    // It lives as long as it is read from.
    _connection: tokio::task::JoinHandle<hyper::Result<()>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// There is no daemon.
    #[error("no larder is running on {tried}; start one with `{start}`, or say with --data-dir where it is")]
    NotRunning {
        /// The folders, and what is there instead.
        tried: String,
        /// A command that would start one there.
        start: String,
    },
    /// There may be one, but it is another user's.
    #[error("connect to {}: permission denied; only the user who runs larder, and root, may give it commands: try sudo", .socket.display())]
    NotAllowed {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket can't be used.
    #[error("connect to {}: {source}", .socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The daemon went away, or the answer was too long.
    #[error("{question}: the daemon's answer broke off ({why}); its log says more")]
    Broken {
        /// What was asked.
        question: String,
        /// Why.
        why: String,
    },
    /// The daemon says no.
    #[error("{message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// The daemon is of another version, perhaps.
    #[error("{question}: the daemon's answer can't be read ({why}); is it of another version than this command?")]
    Unreadable {
        /// What was asked.
        question: String,
        /// Why.
        why: String,
    },
}

impl Client {
    /// A client of the daemon in the first of these folders that exists.
    pub(super) fn new(folders: Vec<PathBuf>) -> Self {
        Self { folders }
    }

    /// Asks for something; `path` is what comes after `/api/v1/`.
    pub(super) async fn get(&self, path: &str) -> Result<Answer, Error> {
        self.ask(Method::GET, path, None).await
    }

    /// Has something done.
    pub(super) async fn post(&self, path: &str, body: serde_json::Value) -> Result<Answer, Error> {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// Has something removed.
    pub(super) async fn delete(&self, path: &str) -> Result<Answer, Error> {
        self.ask(Method::DELETE, path, None).await
    }

    /// Has a file made; it is not read before [`Download::save`].
    pub(super) async fn download(&self, path: &str, body: serde_json::Value) -> Result<Download, Error> {
        let question = format!("POST {path}");
        let broken = |why: &dyn std::fmt::Display| Error::Broken { question: question.clone(), why: why.to_string() };
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|why| broken(&why))?;
        let connection = tokio::spawn(connection);
        let request =
            Request::post(format!("/api/v1/{path}")).header(header::HOST, "larder").header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Full::new(Bytes::from(body.to_string()))).map_err(|why| broken(&why))?;
        let answer = sender.send_request(request).await.map_err(|why| broken(&why))?;
        let number = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
        let (size, images, blobs) = (number(header::CONTENT_LENGTH.as_str()), number(IMAGES_HEADER), number(BLOBS_HEADER));
        let (status, body) = (answer.status(), answer.into_body());
        if !status.is_success() {
            let text = Limited::new(body, ANSWER_SIZE_MAX).collect().await.map_err(|why| broken(&why))?.to_bytes();
            return Err(refused(status, &text));
        }
        Ok(Download { size, images, blobs, body, question, _connection: connection })
    }

    /// Sends a file of `size` bytes, of which the last `tail` come first; `read` gives the next bytes of it.
    pub(super) async fn upload(
        &self,
        path: &str,
        size: u64,
        tail: u64,
        mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Result<Answer, Error> {
        let question = format!("POST {path}");
        let broken = |why: &dyn std::fmt::Display| Error::Broken { question: question.clone(), why: why.to_string() };
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|why| broken(&why))?;
        let connection = tokio::spawn(connection);
        let (pieces, body) = tokio::sync::mpsc::channel::<io::Result<Frame<Bytes>>>(1);
        let body = StreamBody::new(stream::unfold(body, |mut body| async move { body.recv().await.map(|piece| (piece, body)) }));
        let request = Request::post(format!("/api/v1/{path}")).header(header::HOST, "larder").header(header::CONTENT_LENGTH, size);
        let request = request.header(TAIL_HEADER, tail).body(body).map_err(|why| broken(&why))?;
        let sending = async move {
            let mut buffer = vec![0; PIECE_SIZE];
            loop {
                // This thread has nothing else to do.
                let piece = match read(&mut buffer) {
                    Ok(0) => return,
                    Ok(length) => Ok(Frame::data(Bytes::copy_from_slice(&buffer[..length]))),
                    Err(error) => Err(error),
                };
                let is_last = piece.is_err();
                // The daemon may have said no before it saw everything.
                if pieces.send(piece).await.is_err() || is_last {
                    return;
                }
            }
        };
        let asking = sender.send_request(request);
        tokio::pin!(sending, asking);
        let answer = tokio::select! {
            answer = &mut asking => answer,
            () = &mut sending => asking.await,
        };
        let answer = answer.map_err(|why| broken(&why))?;
        let status = answer.status();
        let text = Limited::new(answer.into_body(), ANSWER_SIZE_MAX).collect().await.map_err(|why| broken(&why))?.to_bytes();
        connection.abort();
        if status.is_success() { Ok(Answer { text, question }) } else { Err(refused(status, &text)) }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<serde_json::Value>) -> Result<Answer, Error> {
        let question = format!("{method} {path}");
        let broken = |why: &dyn std::fmt::Display| Error::Broken { question: question.clone(), why: why.to_string() };
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|why| broken(&why))?;
        // It ends with the answer; what can go wrong with it shows there.
        let connection = tokio::spawn(connection);

        let mut request = Request::builder().method(method).uri(format!("/api/v1/{path}")).header(header::HOST, "larder");
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = request.body(Full::new(body)).map_err(|why| broken(&why))?;
        let answer = sender.send_request(request).await.map_err(|why| broken(&why))?;
        let status = answer.status();
        let text = Limited::new(answer.into_body(), ANSWER_SIZE_MAX).collect().await.map_err(|why| broken(&why))?.to_bytes();
        connection.abort();
        if status.is_success() { Ok(Answer { text, question }) } else { Err(refused(status, &text)) }
    }

    async fn connect(&self) -> Result<UnixStream, Error> {
        // The first that is there, so that a daemon that is down is not replaced by another one in silence.
        let folder = self.folders.iter().find(|folder| folder.exists()).or(self.folders.first());
        let socket = folder.map(|folder| folder.join(SOCKET)).unwrap_or_default();
        match UnixStream::connect(&socket).await {
            Ok(stream) => Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(Error::NotAllowed { socket }),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Err(self.not_running(&socket, &error))
            }
            Err(source) => Err(Error::Connect { socket, source }),
        }
    }

    fn not_running(&self, socket: &Path, error: &io::Error) -> Error {
        let state = |folder: &PathBuf| {
            let path = folder.join(SOCKET);
            let what = match (path == socket, folder.exists()) {
                (_, false) => "no such folder",
                (true, true) if error.kind() == io::ErrorKind::ConnectionRefused => "nobody answers at its socket",
                _ => "no socket",
            };
            format!("{} ({what} {})", folder.display(), if folder.exists() { SOCKET } else { "" }).replace(" )", ")")
        };
        let tried = self.folders.iter().map(state).collect::<Vec<_>>().join(" or ");
        let start = match self.folders.as_slice() {
            [folder] => format!("larder serve --data-dir {}", folder.display()),
            _ => "larder serve".to_owned(),
        };
        Error::NotRunning { tried, start }
    }
}

impl Download {
    /// Hands the file to `write`, piece by piece.
    pub(super) async fn save(mut self, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> anyhow::Result<()> {
        let broken = |why: &dyn std::fmt::Display| Error::Broken { question: self.question.clone(), why: why.to_string() };
        let mut left = self.size;
        while let Some(frame) = self.body.frame().await {
            if let Ok(bytes) = frame.map_err(|why| broken(&why))?.into_data() {
                left = left.saturating_sub(bytes.len() as u64);
                write(&bytes)?;
            }
        }
        if left > 0 { Err(broken(&format!("{left} bytes are missing")).into()) } else { Ok(()) }
    }
}

impl Answer {
    /// The JSON as it came.
    pub(super) fn text(&self) -> &[u8] {
        self.text.trim_ascii_end()
    }

    /// Reads the JSON.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.text).map_err(|why| Error::Unreadable { question: self.question.clone(), why: why.to_string() })
    }
}

#[derive(serde::Deserialize)]
struct Refusal {
    error: String,
}

fn refused(status: StatusCode, text: &[u8]) -> Error {
    let message = serde_json::from_slice::<Refusal>(text).map(|refusal| refusal.error);
    Error::Refused { message: message.unwrap_or_else(|_| format!("the daemon answered {status} without saying why; its log says more")) }
}

/// Percent-encodes a value for a path or a query; slashes too.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A daemon that says one thing and hangs up; gives back what it was asked.
    fn daemon(folder: &Path, answer: &'static str) -> std::thread::JoinHandle<String> {
        let listener = UnixListener::bind(folder.join(SOCKET)).expect("bind");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut asked = vec![0; 4096];
            let length = stream.read(&mut asked).expect("read");
            stream.write_all(answer.as_bytes()).expect("write");
            String::from_utf8_lossy(&asked[..length]).into_owned()
        })
    }

    fn run<T>(task: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(task)
    }

    #[test]
    fn an_answer_comes_back_as_it_was_sent() {
        let folder = tempfile::tempdir().expect("a temp folder");
        let daemon = daemon(folder.path(), "HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{\"token\":\"x\"}");
        let client = Client::new(vec![folder.path().to_owned()]);
        let answer = run(client.post("tokens", serde_json::json!({"expires_s": 5}))).expect("an answer");
        assert_eq!(answer.text(), br#"{"token":"x"}"#);
        assert_eq!(answer.read::<serde_json::Value>().expect("JSON")["token"], "x");
        assert!(
            answer.read::<Vec<String>>().expect_err("no list").to_string().starts_with("POST tokens: the daemon's answer can't be read")
        );
        let asked = daemon.join().expect("the daemon");
        assert!(asked.starts_with("POST /api/v1/tokens HTTP/1.1\r\n"), "{asked}");
    }

    #[test]
    fn the_daemons_own_words_are_passed_on() {
        let folder = tempfile::tempdir().expect("a temp folder");
        let daemon = daemon(folder.path(), "HTTP/1.1 404 Not Found\r\ncontent-length: 19\r\n\r\n{\"error\":\"no tag\"}\n");
        let error = run(Client::new(vec![folder.path().to_owned()]).delete("tags?repository=a&tag=b")).expect_err("refused");
        assert_eq!(error.to_string(), "no tag");
        daemon.join().expect("the daemon");
        assert!(refused(StatusCode::BAD_GATEWAY, b"<html>").to_string().contains("502 Bad Gateway"));
    }

    #[test]
    fn an_answer_that_breaks_off_is_an_error() {
        let folder = tempfile::tempdir().expect("a temp folder");
        let daemon = daemon(folder.path(), "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n[");
        let error = run(Client::new(vec![folder.path().to_owned()]).get("peers")).expect_err("broken");
        assert!(matches!(error, Error::Broken { .. }), "{error}");
        daemon.join().expect("the daemon");
    }

    #[test]
    fn without_a_daemon_the_error_says_where_it_was_looked_for() {
        let folder = tempfile::tempdir().expect("a temp folder");
        let (there, missing) = (folder.path().to_owned(), folder.path().join("missing"));
        let check = |folders: &[&PathBuf]| {
            run(Client::new(folders.iter().copied().cloned().collect()).get("status")).expect_err("no daemon").to_string()
        };
        let (shown, gone) = (there.display(), missing.display());
        assert_eq!(
            check(&[&there]),
            format!(
                "no larder is running on {shown} (no socket larder.sock); start one with `larder serve --data-dir {shown}`, or say with --data-dir where it is"
            )
        );
        assert!(
            check(&[&missing, &there])
                .starts_with(&format!("no larder is running on {gone} (no such folder) or {shown} (no socket larder.sock)"))
        );
        // A daemon that was killed leaves its socket.
        drop(UnixListener::bind(there.join(SOCKET)).expect("bind"));
        assert!(check(&[&there]).contains("(nobody answers at its socket larder.sock)"));
    }

    #[test]
    fn values_are_percent_encoded() {
        assert_eq!(encode("team/app_1.0-x~"), "team%2Fapp_1.0-x~");
        assert_eq!(encode("a b&c=ü"), "a%20b%26c%3D%C3%BC");
    }
}
