#![no_main]
forebay_fuzz::target!(local_socket);
