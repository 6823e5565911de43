#![no_main]
forebay_fuzz::target!(catalog_image);
