//! A catalog image as a mounted tree.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::io::Errno;

use super::{Context, MountError, descriptor_path, loop_device};

/// Mounts the image in an open file at `target`. The mount keeps the file, also when it is deleted.
pub fn mount(image: impl AsFd, target: &Path) -> Result<(), MountError> {
    // The kernel opens it again by this path, so it must stay open until then.
    match mount_source(&descriptor_path(&image), target) {
        // On tmpfs, and before Linux 6.12.
        Err(MountError::System { source, .. }) if source.raw_os_error() == Some(Errno::NOTBLK.raw_os_error()) => {
            let device = loop_device::attach(&image)
                .map_err(|error| MountError::new("attaching a loop device to the catalog image", error))?;
            mount_source(&device.path, target)
        }
        other => other,
    }
}

fn mount_source(source: &Path, target: &Path) -> Result<(), MountError> {
    let context = Context::open("erofs")?;
    context.string("source", &source.display().to_string())?;
    context.flag("ro")?;
    context.mount_at(target)
}
