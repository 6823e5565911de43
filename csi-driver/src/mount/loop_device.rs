#![allow(unsafe_code)]
//! A loop device over an image, for where EROFS can't use the file itself: images on tmpfs, and kernels before 6.12. The device goes away by
//! itself with its mount.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// How often another process may take the free device before us.
const ATTEMPTS: u32 = 16;

/// `struct loop_config` with its `struct loop_info64`, of which only the flags matter.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    device_to_rdevice: [u64; 5],
    number_to_key_size: [u32; 3],
    flags: u32,
    names_and_key: [u8; 64 + 64 + 32],
    init: [u64; 2],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);

/// An attached device. Keep it until the device is mounted.
#[derive(Debug)]
pub struct LoopDevice {
    /// Its path.
    pub path: PathBuf,
    _device: File,
}

/// Attaches a free device to the image, read-only.
pub fn attach(image: impl AsFd) -> io::Result<LoopDevice> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..ATTEMPTS {
        // SAFETY: the request takes no argument; the descriptor is open.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).write(true).open(&path)?;
        let config = LoopConfig {
            fd: image.as_fd().as_raw_fd() as u32,
            block_size: 0,
            device_to_rdevice: [0; 5],
            number_to_key_size: [0; 3],
            flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
            names_and_key: [0; 160],
            init: [0; 2],
            reserved: [0; 8],
        };
        // SAFETY: `config` has the layout and size of the kernel's structure and lives across the call, which only reads it.
        let configured = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
        if configured == 0 {
            return Ok(LoopDevice { path, _device: device });
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(error);
        }
    }
    Err(io::Error::from(io::ErrorKind::ResourceBusy))
}
