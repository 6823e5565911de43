//! The node API as peers see it.

use std::time::Duration;

use forebay_cache_node::fetch::peers::{PeerAnswer, Peers};
use forebay_cache_node::memory::{LEAST, Shares};
use forebay_cache_node::store::{DatasetSlot, ObjectRef};
use forebay_cache_node::units::ChunkIndex;
use forebay_catalog::ObjectId;
use forebay_protocol::node::ReadCatalogRequest;
use forebay_protocol::transfer::{ClientFrame, HEADER_BYTES, HELLO, MAX_ITEMS, Reach, ServerFrame, Status};
use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;

use crate::common::asker::{Asker, item};
use crate::common::process::NodeProcess;
use crate::common::{config, content, dataset, file_source, free_address, preload_all, scratch, wait_for};

const UID: &str = "d1";
const CHUNK: usize = 4 << 20;

/// A node over a folder with these files; loaded, if so wanted.
async fn node_with(files: &[(&str, Vec<u8>)], preload: bool) -> (NodeProcess, tempfile::TempDir) {
    let source = scratch();
    for (name, bytes) in files {
        std::fs::write(source.path().join(name), bytes).unwrap();
    }
    let address = free_address([127, 0, 0, 2]);
    let node = NodeProcess::start(|folder| {
        let mut dataset = dataset(UID, file_source(source.path()));
        dataset.preload = preload.then(preload_all);
        config(folder, address, &[], vec![dataset])
    })
    .await;
    node.catalog_id(UID).await;
    if preload {
        node.wait_preloaded(UID).await;
    }
    (node, source)
}

async fn id_of(node: &NodeProcess, name: &str) -> ObjectId {
    node.reader(UID).await.files()[name]
}

fn object(id: ObjectId, size: usize) -> ObjectRef {
    ObjectRef { id, size: size as u64, dataset: DatasetSlot(0) }
}

fn peers() -> Peers {
    Peers::new(None, Shares::of(LEAST).buffers)
}

/// Where a complete object's file is.
fn file_of(node: &NodeProcess, id: &ObjectId) -> std::path::PathBuf {
    node.config.node.cache_dir.join("objects").join(id.relative_path())
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_come_whole_with_checksums_and_nonsense_is_refused() {
    let bytes = content(1, 2 * CHUNK + 1000);
    let (node, _source) = node_with(&[("f", bytes.clone())], false).await;
    let id = id_of(&node, "f").await;
    let mut asker = Asker::connect(node.address()).await;
    let (answer, nothing) = asker.one(UID, &id, 1, Reach::Cache).await;
    assert_eq!((answer.status, nothing.len()), (Status::Lacking, 0), "nothing is here, and nothing is fetched");
    for was_cached in [false, true] {
        // The last one first: answers come in any order, each with its number.
        asker.ask(UID, &[item(2, &id, 2, Reach::Source), item(1, &id, 1, Reach::Source)]).await;
        let mut got = Vec::new();
        for _ in 0..2 {
            let (answer, chunk) = asker.answer().await;
            assert_eq!((answer.status, answer.was_cached), (Status::Chunk, was_cached));
            let begin = answer.number as usize * CHUNK;
            assert!(chunk == bytes[begin..bytes.len().min(begin + CHUNK)], "chunk {}", answer.number);
            assert_eq!(answer.crc, crc32c::crc32c(&chunk));
            got.push(answer.number);
        }
        got.sort_unstable();
        assert_eq!(got, [1, 2]);
    }
    let (answer, _) = asker.one(UID, &id, 1, Reach::Cache).await;
    assert!(answer.was_cached);
    for (uid, id, chunk, expected) in [
        (UID, id, 3, Status::Invalid),
        (UID, id, u32::MAX, Status::Invalid),
        (UID, ObjectId::from_bytes([7; 16]), 0, Status::NotFound),
        ("../../etc", id, 0, Status::NotFound),
        ("", id, 0, Status::NotFound),
    ] {
        let (answer, message) = asker.one(uid, &id, chunk, Reach::Source).await;
        assert_eq!(answer.status, expected);
        assert!(!message.is_empty() && message.is_ascii());
    }
    asker.send(&ClientFrame::Ping(99)).await;
    assert_eq!(asker.header().await, Some(ServerFrame::Pong(99)));

    let mut client = node.client().await.unwrap();
    let none = client.read_catalog(ReadCatalogRequest { dataset_uid: "other".to_owned() }).await;
    assert_eq!(none.unwrap_err().code(), Code::NotFound);
    let long = ReadCatalogRequest { dataset_uid: "x".repeat(1 << 20) };
    assert!(client.read_catalog(long).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_closes_its_connection_with_a_line_in_the_log_and_harms_nobody() {
    let bytes = content(1, 5000);
    let (node, _source) = node_with(&[("f", bytes.clone())], true).await;
    let id = id_of(&node, "f").await;
    let mut good = Asker::connect(node.address()).await;
    let huge = {
        let mut frame = [0_u8; HEADER_BYTES];
        frame[0] = 1;
        frame[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        frame
    };
    for garbage in [&[0x77; 64][..], &huge] {
        let mut bad = Asker::connect(node.address()).await;
        bad.socket.write_all(garbage).await.unwrap();
        assert!(bad.is_closed().await);
    }
    // Another version, another protocol.
    for first in [&b"\xf0FBY\x02\0\0\0"[..], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut socket = TcpStream::connect(node.address()).await.unwrap();
        socket.write_all(first).await.unwrap();
        assert_eq!(socket.read(&mut [0; 8]).await.unwrap_or(0), 0);
    }
    wait_for("a line for each", Duration::from_secs(10), || async {
        let log = node.log();
        let lines = |text| log.matches(text).count();
        (lines("a peer sent what is no request") == 3 && lines("neither HTTP/2 nor forebay/1") == 1).then_some(())
    })
    .await;
    let (answer, read) = good.one(UID, &id, 0, Reach::Cache).await;
    assert!(answer.status == Status::Chunk && read == bytes);
    assert!(node.try_status().await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_takes_nothing_keeps_nobody_waiting_and_costs_no_memory() {
    let bytes = content(1, 8 * CHUNK);
    let small = content(2, 60_000);
    let (node, _source) = node_with(&[("large", bytes.clone()), ("small", small.clone())], true).await;
    let (large_id, small_id) = (id_of(&node, "large").await, id_of(&node, "small").await);
    // Each asks for 4 GiB and 60 MB and reads none of it.
    let mut deaf = Vec::new();
    for _ in 0..20 {
        let mut asker = Asker::connect(node.address()).await;
        let large: Vec<_> = (0..MAX_ITEMS as u32).map(|n| item(n, &large_id, n % 8, Reach::Cache)).collect();
        let few: Vec<_> = (0..MAX_ITEMS as u32).map(|n| item(n, &small_id, 0, Reach::Cache)).collect();
        asker.ask(UID, &few).await;
        asker.ask(UID, &large).await;
        deaf.push(asker);
    }
    let before = node.high_water_mark();
    let mut asker = Asker::connect(node.address()).await;
    for chunk in 0..8 {
        let (answer, read) = asker.one(UID, &large_id, chunk, Reach::Cache).await;
        assert!(answer.status == Status::Chunk && read == bytes[chunk as usize * CHUNK..][..CHUNK]);
        let (_, read) = asker.one(UID, &small_id, 0, Reach::Cache).await;
        assert!(read == small);
    }
    // 20 connections of half a MiB of small ones that are ready; far from what was asked for.
    let after = node.high_water_mark();
    assert!(after < 160 << 20 && after < before + (32 << 20), "{before} bytes, then {after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_copy_is_dropped_when_its_receiver_complains_and_fetched_again() {
    let bytes = content(1, CHUNK + 5);
    let (node, _source) = node_with(&[("f", bytes.clone())], true).await;
    let id = id_of(&node, "f").await;
    let file = file_of(&node, &id);
    // The same length, so that only the checksum tells.
    let mut damaged = bytes.clone();
    damaged[1000] ^= 1;
    std::fs::write(&file, &damaged).unwrap();
    let mut asker = Asker::connect(node.address()).await;
    let (answer, read) = asker.one(UID, &id, 0, Reach::Cache).await;
    assert!(answer.status == Status::Chunk && answer.crc != crc32c::crc32c(&read), "the file goes out as it is");
    // A complaint about what is in order changes nothing.
    let suspect = |chunk| ClientFrame::Suspect { dataset_uid: UID.to_owned(), item: item(5, &id, chunk, Reach::Cache) };
    asker.send(&suspect(1)).await;
    assert_eq!(asker.answer().await.0.status, Status::Intact);
    assert!(file.exists());
    // A client does all of it by itself and gets the right bytes.
    let peers = peers();
    let object = object(id, bytes.len());
    let answer = peers.read_chunk(node.address(), UID, &object, ChunkIndex(0), Reach::Source).await;
    let PeerAnswer::Chunk { bytes: read, was_cached, .. } = answer else { panic!("{answer:?}") };
    assert!(read == bytes[..CHUNK] && !was_cached);
    assert_eq!(node.metric("forebay_verification_failures_total").await, 1);
    // Small ones are verified before they are sent.
    drop(node);
    let (node, _source) = node_with(&[("s", content(3, 900))], true).await;
    let id = id_of(&node, "s").await;
    std::fs::write(file_of(&node, &id), vec![0; 900]).unwrap();
    let mut asker = Asker::connect(node.address()).await;
    let (answer, read) = asker.one(UID, &id, 0, Reach::Source).await;
    assert!(answer.status == Status::Chunk && !answer.was_cached && read == content(3, 900));
    assert_eq!(node.metric("forebay_verification_failures_total").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_come_right_and_who_gives_up_takes_nothing_from_the_others() {
    let large = content(1, 6 * CHUNK + 77);
    let names: Vec<String> = (0..300).map(|i| format!("s{i:03}")).collect();
    let mut files: Vec<_> = names.iter().zip(10..).map(|(n, seed)| (n.as_str(), content(seed, 4096))).collect();
    files.push(("large", large.clone()));
    let (node, _source) = node_with(&files, false).await;
    let ids = node.reader(UID).await.files();
    let (peers, address) = (peers(), node.address());
    let whole = object(ids["large"], large.len());
    for _ in 0..3 {
        let reads = join_all((0..7).map(|chunk| {
            let peers = &peers;
            async move { peers.read_chunk(address, UID, &whole, ChunkIndex(chunk), Reach::Source).await }
        }));
        // Given up at some point between the request and the last byte.
        let impatient = join_all((0..7_u64).map(|chunk| {
            let peers = &peers;
            let read =
                async move { peers.read_chunk(address, UID, &whole, ChunkIndex(chunk as u32), Reach::Source).await };
            tokio::time::timeout(Duration::from_micros(chunk * 300), read)
        }));
        let objects: Vec<_> = names.iter().map(|name| object(ids[name], 4096)).collect();
        let small = objects.iter().map(|object| peers.read_chunk(address, UID, object, ChunkIndex(0), Reach::Source));
        let small = join_all(small);
        let (reads, _, small) = tokio::join!(reads, impatient, small);
        for (chunk, answer) in reads.into_iter().enumerate() {
            let PeerAnswer::Chunk { bytes, .. } = answer else { panic!("{chunk}: {answer:?}") };
            assert!(bytes == large[chunk * CHUNK..large.len().min((chunk + 1) * CHUNK)], "chunk {chunk}");
        }
        for ((name, expected), answer) in files.iter().zip(small) {
            let PeerAnswer::Chunk { bytes, .. } = answer else { panic!("{name}: {answer:?}") };
            assert!(bytes == expected[..], "{name}");
        }
    }
    let source = node.metric("forebay_source_read_bytes_total").await;
    assert_eq!(source, (large.len() + 300 * 4096) as u64, "each byte was fetched once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_falls_silent_is_noticed_within_seconds_and_rested() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let silent = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut hello = [0; HELLO.len()];
            socket.read_exact(&mut hello).await.unwrap();
            socket.write_all(&HELLO).await.unwrap();
            held.push(socket);
        }
    });
    let peers = peers();
    let object = object(ObjectId::from_bytes([1; 16]), 100);
    let began = std::time::Instant::now();
    let answer = peers.read_chunk(address, UID, &object, ChunkIndex(0), Reach::Source).await;
    assert!(matches!(answer, PeerAnswer::Unavailable), "{answer:?}");
    let noticed = began.elapsed();
    assert!(noticed > Duration::from_secs(3) && noticed < Duration::from_secs(8), "{noticed:?}");
    let again = peers.read_chunk(address, UID, &object, ChunkIndex(0), Reach::Source);
    let again = tokio::time::timeout(Duration::from_millis(500), again).await;
    assert!(matches!(again, Ok(PeerAnswer::Unavailable)), "a peer that rests is not asked: {again:?}");
    silent.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_sends_wrong_bytes_again_and_again_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let liar = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut hello = [0; HELLO.len()];
        socket.read_exact(&mut hello).await.unwrap();
        socket.write_all(&HELLO).await.unwrap();
        let (mut all, mut suspected) = (Vec::new(), 0);
        while socket.read_buf(&mut all).await.unwrap() > 0 {
            while let Some((frame, used)) = ClientFrame::decode(&all).unwrap() {
                all.drain(..used);
                let (number, status) = match &frame {
                    ClientFrame::Request { items, .. } => (items[0].number, Status::Chunk),
                    ClientFrame::Suspect { item, .. } => {
                        suspected += 1;
                        (item.number, Status::Intact)
                    }
                    ClientFrame::Ping(_) => continue,
                };
                let length = if status == Status::Chunk { 100 } else { 0 };
                let header = forebay_protocol::transfer::Answer { number, status, was_cached: true, length, crc: 1 };
                socket.write_all(&ServerFrame::Answer(header).encode()).await.unwrap();
                socket.write_all(&vec![9; length as usize]).await.unwrap();
            }
        }
        suspected
    });
    let peers = peers();
    let object = object(ObjectId::from_bytes([1; 16]), 100);
    let answer = peers.read_chunk(address, UID, &object, ChunkIndex(0), Reach::Source).await;
    assert!(matches!(answer, PeerAnswer::Damaged), "{answer:?}");
    drop(peers);
    assert_eq!(liar.await.unwrap(), 2, "the peer is told each time");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_little_memory_is_refused_with_the_number_it_takes() {
    let source = scratch();
    std::fs::write(source.path().join("f"), b"x").unwrap();
    let address = free_address([127, 0, 0, 2]);
    let mut node =
        NodeProcess::start(|folder| config(folder, address, &[], vec![dataset(UID, file_source(source.path()))])).await;
    node.kill();
    node.config.node.memory_bytes = LEAST - 1;
    node.spawn();
    wait_for("the refusal", Duration::from_secs(20), || async {
        let log = node.log();
        log.contains("node.memoryBytes is 67108863, and a node needs at least 67108864").then_some(())
    })
    .await;
}
