#![no_main]
forebay_fuzz::target!(object_paths);
