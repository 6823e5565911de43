//! The node API as peers see it.

use bytes::Bytes;
use forebay_protocol::node::{ReadCatalogRequest, ReadObjectRequest, ReadObjectResponse};
use tonic::Code;

use crate::common::process::NodeProcess;
use crate::common::{config, content, dataset, file_source, free_address, scratch};

const UID: &str = "d1";
const CHUNK: u64 = 4 << 20;

async fn read(node: &NodeProcess, request: ReadObjectRequest) -> Result<Vec<ReadObjectResponse>, tonic::Status> {
    let mut pieces = node.client().await.unwrap().read_object(request).await?.into_inner();
    let mut all = Vec::new();
    while let Some(piece) = pieces.message().await? {
        all.push(piece);
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_comes_in_whole_chunks_with_checksums_and_nonsense_is_refused() {
    let source = scratch();
    let bytes = content(1, 2 * CHUNK as usize + 1000);
    std::fs::write(source.path().join("f"), &bytes).unwrap();
    let address = free_address([127, 0, 0, 2]);
    let node =
        NodeProcess::start(|folder| config(folder, address, &[], vec![dataset(UID, file_source(source.path()))])).await;
    let id = node.reader(UID).await.files()["f"];
    let good = ReadObjectRequest {
        dataset_uid: UID.to_owned(),
        object_id: Bytes::copy_from_slice(id.as_bytes()),
        offset: CHUNK,
        length: u64::MAX,
        cached_only: false,
        relay: false,
    };
    let held = ReadObjectRequest { cached_only: true, ..good.clone() };
    assert!(read(&node, held.clone()).await.unwrap().is_empty(), "nothing is here, and nothing is fetched");
    for was_cached in [false, true] {
        let pieces = read(&node, good.clone()).await.unwrap();
        let all: Vec<u8> = pieces.iter().flat_map(|piece| piece.data.to_vec()).collect();
        assert!(all == bytes[CHUNK as usize..]);
        assert!(pieces.iter().all(|piece| piece.data.len() <= 1 << 20 && piece.was_cached == was_cached));
        let crcs: Vec<_> = pieces.iter().filter_map(|piece| piece.chunk_crc32c).collect();
        let expected = bytes[CHUNK as usize..].chunks(CHUNK as usize).map(crc32c::crc32c);
        assert_eq!(crcs, expected.collect::<Vec<_>>());
    }

    assert!(read(&node, held).await.unwrap().iter().all(|piece| piece.was_cached));
    let refused = async |change: &dyn Fn(&mut ReadObjectRequest)| {
        let mut request = good.clone();
        change(&mut request);
        read(&node, request).await.unwrap_err().code()
    };
    assert_eq!(refused(&|request| request.offset = 5).await, Code::InvalidArgument);
    assert_eq!(refused(&|request| request.offset = 100 * CHUNK).await, Code::InvalidArgument);
    assert_eq!(refused(&|request| request.length = 0).await, Code::InvalidArgument);
    assert_eq!(refused(&|request| request.object_id = Bytes::from_static(b"short")).await, Code::InvalidArgument);
    assert_eq!(refused(&|request| request.object_id = Bytes::from_static(&[7; 16])).await, Code::NotFound);
    assert_eq!(refused(&|request| request.dataset_uid = "../../etc".to_owned()).await, Code::NotFound);
    let mut client = node.client().await.unwrap();
    let none = client.read_catalog(ReadCatalogRequest { dataset_uid: "other".to_owned() }).await;
    assert_eq!(none.unwrap_err().code(), Code::NotFound);
    let long = ReadCatalogRequest { dataset_uid: "x".repeat(1 << 20) };
    assert!(client.read_catalog(long).await.is_err());
}
