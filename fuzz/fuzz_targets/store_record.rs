#![no_main]
forebay_fuzz::target!(store_record);
