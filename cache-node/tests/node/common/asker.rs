//! A client of the node API's frames that sends what a test says, byte by byte if need be.

use std::net::SocketAddr;

use forebay_catalog::ObjectId;
use forebay_protocol::transfer::{Answer, ClientFrame, HEADER_BYTES, HELLO, Item, Reach, ServerFrame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub struct Asker {
    pub socket: TcpStream,
}

impl Asker {
    pub async fn connect(address: SocketAddr) -> Self {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(&HELLO).await.unwrap();
        let mut hello = [0; HELLO.len()];
        socket.read_exact(&mut hello).await.unwrap();
        assert_eq!(hello, HELLO);
        Self { socket }
    }

    pub async fn send(&mut self, frame: &ClientFrame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.socket.write_all(&bytes).await.unwrap();
    }

    pub async fn ask(&mut self, uid: &str, items: &[Item]) {
        self.send(&ClientFrame::Request { dataset_uid: uid.to_owned(), items: items.to_vec() }).await;
    }

    /// The next frame's header; none when the node has closed the connection.
    pub async fn header(&mut self) -> Option<ServerFrame> {
        let mut header = [0; HEADER_BYTES];
        self.socket.read_exact(&mut header).await.ok()?;
        Some(ServerFrame::decode(&header).unwrap().unwrap().0)
    }

    pub async fn answer(&mut self) -> (Answer, Vec<u8>) {
        let frame = self.header().await.expect("the node closed the connection");
        let ServerFrame::Answer(answer) = frame else { panic!("{frame:?}") };
        let mut bytes = vec![0; answer.length as usize];
        self.socket.read_exact(&mut bytes).await.unwrap();
        (answer, bytes)
    }

    /// Asks for one chunk and gets its answer.
    pub async fn one(&mut self, uid: &str, id: &ObjectId, chunk: u32, reach: Reach) -> (Answer, Vec<u8>) {
        self.ask(uid, &[item(7, id, chunk, reach)]).await;
        let (answer, bytes) = self.answer().await;
        assert_eq!(answer.number, 7);
        (answer, bytes)
    }

    /// Whether the node closes the connection without another word.
    pub async fn is_closed(&mut self) -> bool {
        let mut rest = [0; 1];
        matches!(self.socket.read(&mut rest).await, Ok(0) | Err(_))
    }
}

pub fn item(number: u32, id: &ObjectId, chunk: u32, reach: Reach) -> Item {
    Item { number, object: *id.as_bytes(), chunk, reach }
}
