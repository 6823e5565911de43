#![no_main]
forebay_fuzz::target!(s3_list);
