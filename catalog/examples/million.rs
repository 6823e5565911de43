//! How long a catalog of so many files takes, how much memory, and how large it is: `cargo run --release --example million -- 1000000 DIR`.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use forebay_catalog::{Catalog, CatalogOptions, CatalogSource, CatalogWriter, Mtime, SourceIndex, TreeAttributes};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let count: u64 = arguments.next().ok_or("how many files?")?.parse()?;
    let folder = PathBuf::from(arguments.next().ok_or("which folder?")?);
    let shuffle = arguments.next().is_some();
    fs::create_dir_all(&folder)?;
    let source = CatalogSource {
        mount_path: "/".into(),
        url: "s3://training-data".into(),
        identity: "https://s3.eu-central-1.amazonaws.com/training-data".into(),
        prefix: b"imagenet/".to_vec(),
    };
    let attributes = TreeAttributes { uid: 0, gid: 0, file_mode: 0o444, dir_mode: 0o555 };
    let start = Instant::now();
    let mut writer = CatalogWriter::new(CatalogOptions { sources: vec![source], attributes })?;
    for i in 0..count {
        let i = if shuffle { i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % count } else { i };
        let key = format!("imagenet/train/n{:08}/n{:08}_{i:010}.JPEG", i / 1300, i / 1300);
        let etag = format!("\"{:032x}\"", u128::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
        let mtime = Mtime { seconds: 1_600_000_000 + i as i64, nanos: 0 };
        writer.add_file(SourceIndex(0), key.as_bytes(), 100_000 + i % 50_000, mtime, &etag)?;
    }
    println!("add_file: {:?}; {}", start.elapsed(), memory()?);
    let start = Instant::now();
    let summary = writer.finish(&folder)?;
    println!("finish: {:?}; {}", start.elapsed(), memory()?);
    for name in ["image.erofs", "objects.table"] {
        let bytes = fs::metadata(folder.join(name))?.len();
        println!("{name}: {bytes} bytes, {:.1} a file", bytes as f64 / count as f64);
    }
    let start = Instant::now();
    let catalog = Catalog::open(&folder)?;
    println!("open: {:?}", start.elapsed());
    let start = Instant::now();
    Catalog::verify(&folder, summary.id)?;
    println!("verify: {:?}", start.elapsed());
    let ids: Vec<_> = catalog.table().iter().map(|record| record.id).collect();
    let start = Instant::now();
    let found = ids.iter().filter(|id| catalog.table().find(id).is_some()).count();
    println!("find: {:?} each, {found} found", start.elapsed() / count as u32);
    Ok(())
}

fn memory() -> Result<String, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    Ok(status
        .lines()
        .filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS"))
        .collect::<Vec<_>>()
        .join(" "))
}
