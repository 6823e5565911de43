//! How trees are mounted: by the kernel alone where it can, else by the FUSE daemon. Chosen once, at the start; nothing here is privileged.

use std::fmt;

use crate::mount::kernel::{self, MissingFeature};

/// How trees are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// An overlay of the catalog image: no daemon is needed to read what is complete.
    Kernel,
    /// A folder of the object FUSE.
    Fuse,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "Kernel",
            Self::Fuse => "Fuse",
        })
    }
}

/// What `--mount-mode` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Wanted {
    /// Kernel where the kernel has what it needs, else Fuse
    #[default]
    Auto,
    /// An overlay of the catalog image: what is complete is read without a daemon. Needs Linux 6.8, EROFS and overlayfs
    Kernel,
    /// The FUSE daemon serves the tree too: for older kernels
    Fuse,
}

/// The mode that a machine mounts in, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The mode.
    pub mode: Mode,
    /// Why it is this one: a clause that can follow "because".
    pub reason: String,
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, because {}", self.mode, self.reason)
    }
}

impl Wanted {
    /// The mode on this machine; an error names what is missing for it.
    pub fn choose(self) -> Result<Chosen, MissingFeature> {
        self.choose_of(kernel::missing_features(), kernel::missing_for_fuse())
    }

    /// The name on the command line.
    pub fn argument(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kernel => "kernel",
            Self::Fuse => "fuse",
        }
    }

    fn choose_of(
        self,
        for_kernel: Vec<MissingFeature>,
        for_fuse: Vec<MissingFeature>,
    ) -> Result<Chosen, MissingFeature> {
        let first = |missing: Vec<MissingFeature>| missing.into_iter().next();
        if self == Self::Kernel
            && let Some(missing) = first(for_kernel.clone())
        {
            return Err(missing);
        }
        if let Some(missing) = first(for_fuse) {
            return Err(missing);
        }
        let (mode, reason) = match (self, first(for_kernel)) {
            (Self::Kernel, _) => (Mode::Kernel, "--mount-mode says so".to_owned()),
            (Self::Fuse, _) => (Mode::Fuse, "--mount-mode says so".to_owned()),
            (Self::Auto, None) => (Mode::Kernel, "the kernel has all that it needs".to_owned()),
            (Self::Auto, Some(missing)) => (Mode::Fuse, missing.to_string()),
        };
        Ok(Chosen { mode, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_mode_is_taken_where_the_kernel_can_unless_another_is_asked_for() {
        let chosen = |wanted: Wanted, for_kernel: &[MissingFeature]| wanted.choose_of(for_kernel.to_vec(), Vec::new());
        let old = kernel::missing_by_version(kernel::Version(5, 15));
        assert_eq!(chosen(Wanted::Auto, &[]).unwrap().mode, Mode::Kernel);
        let fuse = chosen(Wanted::Auto, &old).unwrap();
        assert_eq!(fuse.mode, Mode::Fuse);
        assert!(fuse.to_string().starts_with("Fuse, because this node's kernel 5.15 is too old"), "{fuse}");
        assert_eq!(chosen(Wanted::Fuse, &[]).unwrap().mode, Mode::Fuse);
        assert_eq!(chosen(Wanted::Kernel, &old).unwrap_err(), old[0]);
    }

    #[test]
    fn without_fuse_there_is_no_mode() {
        let missing = [MissingFeature::FileSystem("fuse")];
        for wanted in [Wanted::Auto, Wanted::Kernel, Wanted::Fuse] {
            assert_eq!(wanted.choose_of(missing.to_vec(), missing.to_vec()), Err(missing[0].clone()));
        }
    }
}
