//! Messages of the node API, from peers: the first byte says which, the rest is the message.

use forebay_catalog::{CatalogId, ObjectId};
use forebay_protocol::node::{
    AdoptItem, AdoptRequest, AdoptResponse, CatalogHeader, ReadCatalogRequest, ReadCatalogResponse, StatusRequest,
    StatusResponse, read_catalog_response::Part,
};
use prost::Message;

/// A message that is read and written again reads the same.
pub fn check<M: Message + Default>(bytes: &[u8]) -> Option<M> {
    let message = M::decode(bytes).ok()?;
    let written = message.encode_to_vec();
    assert!(written.len() <= 2 * bytes.len(), "a message of {} bytes has grown to {}", bytes.len(), written.len());
    // Compared as bytes: a message with a NaN is not equal to itself.
    assert_eq!(M::decode(written.as_slice()).map(|again| again.encode_to_vec()).as_ref(), Ok(&written));
    Some(message)
}

/// Decodes the message; ids in it are taken apart as the node does.
pub fn run(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 6 {
        0 => drop(check::<StatusRequest>(bytes)),
        1 => drop(check::<StatusResponse>(bytes)),
        2 => drop(check::<ReadCatalogRequest>(bytes)),
        3 => {
            if let Some(ReadCatalogResponse { part: Some(Part::Header(header)) }) = check(bytes)
                && let Ok(id) = header.id.parse::<CatalogId>()
            {
                assert_eq!(id.to_string(), header.id.to_lowercase());
            }
        }
        4 => {
            for item in check::<AdoptRequest>(bytes).into_iter().flat_map(|request| request.items) {
                let Ok(id) = <[u8; 16]>::try_from(item.object_id.as_ref()) else { continue };
                let path = ObjectId::from_bytes(id).relative_path();
                let (folder, name) = path.split_at(2);
                assert_eq!(
                    ObjectId::from_folder_and_name(folder.as_bytes(), &name.as_bytes()[1..]),
                    Some(ObjectId::from_bytes(id))
                );
            }
        }
        _ => drop(check::<AdoptResponse>(bytes)),
    }
}

/// One of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let seed = |kind: u8, message: Vec<u8>| [vec![kind], message].concat();
    let header = CatalogHeader {
        id: "00112233445566778899aabbccddeeff".to_owned(),
        image_bytes: 1,
        table_bytes: 2,
        summary_bytes: 3,
    };
    let status = StatusResponse {
        node_id: "n".to_owned(),
        revision: "r".to_owned(),
        datasets: vec![forebay_protocol::node::DatasetStatus {
            uid: "u".to_owned(),
            cached_bytes: 5,
            ..Default::default()
        }],
        ..Default::default()
    };
    let item = AdoptItem { object_id: bytes::Bytes::from_static(&[7; 16]), chunks: vec![5, 1 << 63] };
    vec![
        seed(1, status.encode_to_vec()),
        seed(2, ReadCatalogRequest { dataset_uid: "u".to_owned() }.encode_to_vec()),
        seed(3, ReadCatalogResponse { part: Some(Part::Header(header)) }.encode_to_vec()),
        seed(3, ReadCatalogResponse { part: Some(Part::Data(bytes::Bytes::from_static(b"abc"))) }.encode_to_vec()),
        seed(
            4,
            AdoptRequest { dataset_uid: "u".to_owned(), member: "m".to_owned(), items: vec![item.clone()] }
                .encode_to_vec(),
        ),
        seed(5, AdoptResponse { held: vec![item], problem: None }.encode_to_vec()),
    ]
}
