#![no_main]
forebay_fuzz::target!(runtime_yaml);
