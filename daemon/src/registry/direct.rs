//! The short way out: bytes of a file that go from the page cache to the socket without passing through this program.
//!
//! The HTTP library sends buffers. A body that has a file instead gives it a buffer that stands for the file's bytes, a part of [`STAND_IN`], and
//! notes which bytes are meant. The library hands buffers to the connection in the order in which it got them; [`Direct`] knows the stand-in
//! by its address and calls `sendfile(2)` where it comes. So the library's own counting (lengths, what was sent of a piece) stays as it is.
//!
//! Only plain HTTP/1.1 has such a connection; there the library asks for bodies within the connection's own task, in which [`Way`] is found.
//! Everywhere else bodies are read.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use larder_protocol::digest::CHUNK_SIZE;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// Is never read: only where a slice of it lies, and how long it is, says anything.
static STAND_IN: [u8; CHUNK_SIZE as usize] = [0; CHUNK_SIZE as usize];

tokio::task_local! {
    static WAY: Way;
}

/// What the stand-ins on one connection mean, in their order.
#[derive(Clone, Default)]
pub(super) struct Way(Arc<Mutex<VecDeque<Part>>>);

struct Part {
    file: Arc<File>,
    at: u64,
    left: usize,
}

/// Gives what stands for a part of a file, at most a chunk of it; nothing where the connection can't send files.
pub(super) fn stand_in(file: &Arc<File>, range: Range<u64>) -> Option<Bytes> {
    let left = usize::try_from(range.end.checked_sub(range.start)?).ok().filter(|left| (1..=STAND_IN.len()).contains(left))?;
    let noted = WAY.try_with(|way| way.parts().push_back(Part { file: Arc::clone(file), at: range.start, left }));
    noted.ok().map(|()| Bytes::from_static(&STAND_IN[..left]))
}

fn is_stand_in(bytes: &[u8]) -> bool {
    let start = STAND_IN.as_ptr().addr();
    !bytes.is_empty() && (start..start + STAND_IN.len()).contains(&bytes.as_ptr().addr())
}

impl Way {
    /// Runs a connection whose bodies find this way.
    pub(super) async fn scope<T>(self, connection: impl Future<Output = T>) -> T {
        WAY.scope(self, connection).await
    }

    fn parts(&self) -> MutexGuard<'_, VecDeque<Part>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket that sends files where stand-ins come.
pub(super) struct Direct {
    stream: TcpStream,
    way: Way,
}

impl Direct {
    pub(super) fn new(stream: TcpStream, way: Way) -> Self {
        Self { stream, way }
    }

    /// Does it when the socket has room. `work` must not block.
    fn poll_io(&self, cx: &mut Context<'_>, mut work: impl FnMut(&TcpStream) -> io::Result<usize>) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_io(Interest::WRITABLE, || work(&self.stream)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return Poll::Ready(done),
            }
        }
    }

    /// Sends what a stand-in of so many bytes means, or a part of it.
    fn poll_send_file(&self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        let mut parts = self.way.parts();
        let Some(part) = parts.front_mut() else { return Poll::Ready(Err(io::Error::other("a stand-in that stands for nothing"))) };
        let most = part.left.min(wanted);
        let sent = ready!(self.poll_io(cx, |stream| {
            let mut at = part.at;
            Ok(rustix::fs::sendfile(stream, &*part.file, Some(&mut at), most)?)
        }))?;
        if sent == 0 {
            // I2: the file is shorter than it was; the client must not take a part for the whole.
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        part.at += sent as u64;
        part.left -= sent;
        if part.left == 0 {
            parts.pop_front();
        }
        Poll::Ready(Ok(sent))
    }
}

impl AsyncRead for Direct {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Direct {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if is_stand_in(bytes) {
            return self.poll_send_file(cx, bytes.len());
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let empty = slices.iter().take_while(|slice| slice.is_empty()).count();
        let slices = &slices[empty..];
        match slices.iter().position(|slice| is_stand_in(slice)) {
            None => Pin::new(&mut self.stream).poll_write_vectored(cx, slices),
            Some(0) => self.poll_send_file(cx, slices[0].len()),
            // The head of an answer waits for the first bytes of its file: one packet, one wake-up of the client.
            Some(before) => {
                let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
                self.poll_io(cx, |stream| Ok(sendmsg(stream, &slices[..before], &mut SendAncillaryBuffer::default(), flags)?))
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn connected() -> (Direct, TcpStream, Way) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connect");
        let way = Way::default();
        (Direct::new(listener.accept().await.expect("accept").0, way.clone()), client, way)
    }

    fn file(bytes: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("write");
        Arc::new(file)
    }

    #[tokio::test]
    async fn what_stands_in_for_files_becomes_their_bytes_in_order() {
        let (mut direct, mut client, way) = connected().await;
        let bytes: Vec<u8> = (0..CHUNK_SIZE as u32 + 77).map(|number| (number % 251) as u8).collect();
        let file = file(&bytes);
        let parts = way.scope(async { [0..CHUNK_SIZE, CHUNK_SIZE..CHUNK_SIZE + 77, 5..6].map(|range| stand_in(&file, range)) }).await;
        let [first, second, third] = parts.map(|part| part.expect("a way"));
        let sent = async move {
            let mut pieces: VecDeque<Bytes> =
                [Bytes::from_static(b"head"), first, Bytes::from_static(b"mid"), second, third, Bytes::from_static(b"end")].into();
            while !pieces.is_empty() {
                let slices: Vec<IoSlice> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
                let mut count = direct.write_vectored(&slices).await.expect("sent");
                assert!(count > 0);
                while count > 0 {
                    let front = pieces.front_mut().expect("no more than there is");
                    let part = front.split_to(count.min(front.len()));
                    count -= part.len();
                    if front.is_empty() {
                        pieces.pop_front();
                    }
                }
            }
            direct.shutdown().await.expect("ended");
        };
        let mut got = Vec::new();
        let (_, read) = tokio::join!(sent, client.read_to_end(&mut got));
        read.expect("read");
        let (a, b) = bytes.split_at(CHUNK_SIZE as usize);
        assert!(got == [b"head", a, b"mid", b, &bytes[5..6], b"end"].concat());
    }

    #[tokio::test]
    async fn i2_a_file_that_ends_early_breaks_the_connection() {
        let (mut direct, mut client, way) = connected().await;
        let file = file(b"short");
        let part = way.scope(async { stand_in(&file, 0..9) }).await.expect("a way");
        assert_eq!(direct.write(&part).await.expect("what is there"), 5);
        let error = direct.write(&part[5..]).await.expect_err("no more");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        drop(direct);
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.expect("read");
        assert_eq!(got, b"short");
    }

    #[tokio::test]
    async fn nothing_stands_in_for_a_file_elsewhere() {
        assert!(stand_in(&file(b"x"), 0..1).is_none());
        let way = Way::default();
        let none = way.scope(async { [stand_in(&file(b"x"), 1..1), stand_in(&file(b"x"), 0..CHUNK_SIZE + 1)] }).await;
        assert!(none.iter().all(Option::is_none));
    }
}
