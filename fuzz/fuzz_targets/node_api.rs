#![no_main]
forebay_fuzz::target!(node_api);
