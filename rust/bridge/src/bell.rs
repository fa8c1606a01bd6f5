//! Wakes an asyncio loop from any thread: a descriptor that is readable from a ring until it is silenced. An eventfd on
//! Linux, where a ring is one system call on one descriptor; a pair of sockets elsewhere.

use std::io;
use std::os::fd::RawFd;

/// What a [`Mailbox`](crate::mailbox::Mailbox) needs of a bell.
pub(crate) trait Bell {
    /// Makes the reader look; rings that were not heard yet are one.
    fn ring(&self);
    /// Takes the ring back. The reader looks once more *after* it, so a ring that comes meanwhile is not lost.
    fn silence(&self);
}

#[cfg(target_os = "linux")]
mod imp {
    use std::fs::File;
    use std::io::{self, Read, Write};
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

    pub(crate) struct FileBell(File);

    impl FileBell {
        pub(crate) fn new() -> io::Result<Self> {
            // SAFETY: eventfd takes no pointers; a result that is not negative is a new descriptor that nobody else owns.
            #[allow(unsafe_code)]
            let descriptor = unsafe {
                let descriptor = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
                if descriptor < 0 {
                    return Err(io::Error::last_os_error());
                }
                OwnedFd::from_raw_fd(descriptor)
            };
            Ok(Self(File::from(descriptor)))
        }

        pub(crate) fn descriptor(&self) -> RawFd {
            self.0.as_raw_fd()
        }

        pub(crate) fn ring(&self) {
            let _ = (&self.0).write(&1_u64.to_ne_bytes()); // refused only where 2^64 - 2 rings wait already
        }

        pub(crate) fn silence(&self) {
            let _ = (&self.0).read(&mut [0_u8; 8]); // one read takes all rings
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::io::{self, Read, Write};
    use std::os::fd::{AsRawFd, RawFd};
    use std::os::unix::net::UnixStream;

    pub(crate) struct FileBell {
        near: UnixStream,
        far: UnixStream,
    }

    impl FileBell {
        pub(crate) fn new() -> io::Result<Self> {
            let (near, far) = UnixStream::pair()?;
            near.set_nonblocking(true)?;
            far.set_nonblocking(true)?;
            Ok(Self { near, far })
        }

        pub(crate) fn descriptor(&self) -> RawFd {
            self.far.as_raw_fd()
        }

        pub(crate) fn ring(&self) {
            let _ = (&self.near).write(&[1]); // a full socket means that a ring waits already
        }

        pub(crate) fn silence(&self) {
            let mut rings = [0_u8; 64];
            while matches!((&self.far).read(&mut rings), Ok(count) if count > 0) {}
        }
    }
}

/// A bell that a selector can watch.
pub(crate) struct FileBell(imp::FileBell);

impl FileBell {
    pub(crate) fn new() -> io::Result<Self> {
        imp::FileBell::new().map(Self)
    }

    /// Readable while the bell rings.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.0.descriptor()
    }
}

impl Bell for FileBell {
    fn ring(&self) {
        self.0.ring();
    }

    fn silence(&self) {
        self.0.silence();
    }
}
