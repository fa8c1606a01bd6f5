//! A disk that can lose its power: every write and sync that SQLite makes in one folder is recorded, in one order with
//! what the store acknowledged, and the files are rebuilt as they would be found after a power cut at any moment of it.
//!
//! Recorded by a VFS of SQLite (its own interface for this) that hands everything on to the one of the system. What was
//! synced is on the disk. Of what was not, each write is there, or not, or its beginning is; a deleted file may be back.
//! The `-shm` file is memory and never survives.

use crate::checker::Acknowledged;
use crate::random::Random;
use rusqlite::ffi;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

/// The smallest thing that a disk writes whole.
const SECTOR: usize = 512;

/// What happened, in the order in which it happened.
#[derive(Debug, Clone)]
pub(crate) enum Happened {
    Write { file: String, at: usize, bytes: Vec<u8> },
    Truncate { file: String, length: usize },
    Sync { file: String },
    Delete { file: String },
    Said(Acknowledged),
}

struct Recorder {
    folder: PathBuf,
    happened: Vec<Happened>,
}

static RECORDER: Mutex<Option<Recorder>> = Mutex::new(None);

/// Records from now on what happens below a folder; one recording at a time.
pub(crate) fn record(folder: &Path) {
    register();
    *RECORDER.lock().unwrap() = Some(Recorder { folder: folder.to_owned(), happened: Vec::new() });
}

pub(crate) fn say(acknowledged: Acknowledged) {
    if let Some(recorder) = RECORDER.lock().unwrap().as_mut() {
        recorder.happened.push(Happened::Said(acknowledged));
    }
}

/// Ends the recording.
pub(crate) fn stop() -> Vec<Happened> {
    RECORDER.lock().unwrap().take().map(|recorder| recorder.happened).unwrap_or_default()
}

/// Does it and records it as one thing, so that the order on record is the order on disk.
fn recorded(path: Option<&Path>, happened: impl FnOnce(String) -> Happened, run: impl FnOnce() -> c_int) -> c_int {
    let mut recorder = RECORDER.lock().unwrap();
    let done = run();
    if let (Some(recorder), Some(path), ffi::SQLITE_OK) = (recorder.as_mut(), path, done)
        && path.parent() == Some(recorder.folder.as_path())
    {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        recorder.happened.push(happened(file));
    }
    done
}

/// One file while the disk forgets.
#[derive(Debug, Default, Clone)]
struct Kept {
    /// What is there for sure; `None` where there is no file.
    durable: Option<Vec<u8>>,
    /// Since the last sync.
    pending: Vec<Happened>,
}

/// A disk that replays a recording.
pub(crate) struct Disk {
    files: BTreeMap<String, Kept>,
    /// A disk that says it has synced and has not: for the test of the test.
    lies: bool,
}

impl Disk {
    pub(crate) fn new(lies: bool) -> Self {
        Self { files: BTreeMap::new(), lies }
    }

    pub(crate) fn follow(&mut self, happened: &Happened) {
        match happened {
            Happened::Said(_) => {}
            Happened::Sync { file } => {
                let kept = self.files.entry(file.clone()).or_default();
                if self.lies {
                    return;
                }
                let is_new = kept.durable.is_none() || kept.pending.iter().any(is_delete);
                for pending in std::mem::take(&mut kept.pending) {
                    apply(&mut kept.durable, &pending, usize::MAX);
                }
                if is_new {
                    self.sync_folder();
                }
            }
            Happened::Write { file, .. } | Happened::Truncate { file, .. } | Happened::Delete { file } => {
                self.files.entry(file.clone()).or_default().pending.push(happened.clone());
            }
        }
    }

    /// SQLite syncs the folder with the first sync of a journal or log that it made: from then on what was deleted before
    /// is gone.
    fn sync_folder(&mut self) {
        for kept in self.files.values_mut() {
            if let Some(last) = kept.pending.iter().rposition(is_delete) {
                kept.pending.drain(..=last);
                kept.durable = None;
            }
        }
    }

    /// Writes the files as they would be found now.
    pub(crate) fn lose_power(&self, random: &mut Random, folder: &Path) {
        for (file, kept) in &self.files {
            let mut content = kept.durable.clone();
            for pending in &kept.pending {
                match (pending, random.below(10)) {
                    // What follows went to a new file, whose name is not on the disk.
                    (Happened::Delete { .. }, 0..5) => break,
                    (_, 0..4) => {}
                    (Happened::Write { bytes, .. }, 4) => {
                        let sectors = random.below((bytes.len() / SECTOR + 1) as u64) as usize;
                        apply(&mut content, pending, sectors * SECTOR);
                    }
                    _ => apply(&mut content, pending, usize::MAX),
                }
            }
            if let Some(content) = content {
                std::fs::write(folder.join(file), content).unwrap();
            }
        }
    }
}

fn is_delete(happened: &Happened) -> bool {
    matches!(happened, Happened::Delete { .. })
}

fn apply(content: &mut Option<Vec<u8>>, happened: &Happened, at_most: usize) {
    match happened {
        Happened::Write { at, bytes, .. } => {
            let bytes = &bytes[..bytes.len().min(at_most)];
            let content = content.get_or_insert_default();
            let end = at + bytes.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[*at..end].copy_from_slice(bytes);
        }
        Happened::Truncate { length, .. } => content.get_or_insert_default().resize(*length, 0),
        Happened::Delete { .. } => *content = None,
        Happened::Sync { .. } | Happened::Said(_) => {}
    }
}

/// Our file: SQLite's header, the name, and behind them the file of the system's VFS.
#[repr(C)]
struct File {
    base: ffi::sqlite3_file,
    path: *mut PathBuf,
}

struct Vfs(ffi::sqlite3_vfs, *mut ffi::sqlite3_vfs);
// SAFETY: both are written once, before SQLite knows of them, and only read after.
unsafe impl Send for Vfs {}
unsafe impl Sync for Vfs {}

static VFS: OnceLock<Vfs> = OnceLock::new();
static NAME: &CStr = c"recorder";

/// Makes ours the default VFS of this process: the store opens its files without knowing of it.
fn register() {
    VFS.get_or_init(|| {
        // SAFETY: the default VFS of SQLite lives as long as the process; ours is a copy with three fields replaced.
        unsafe {
            let system = ffi::sqlite3_vfs_find(std::ptr::null());
            let mut ours = *system;
            ours.szOsFile += size_of::<File>() as c_int;
            ours.pNext = std::ptr::null_mut();
            ours.zName = NAME.as_ptr();
            ours.xOpen = Some(open);
            ours.xDelete = Some(delete);
            Vfs(ours, system)
        }
    });
    let vfs = VFS.get().unwrap();
    // SAFETY: `vfs` is static. SQLite writes `pNext` only, under its own lock; registering twice is allowed.
    let registered = unsafe { ffi::sqlite3_vfs_register((&raw const vfs.0).cast_mut(), 1) };
    assert_eq!(registered, ffi::SQLITE_OK);
}

fn system() -> *mut ffi::sqlite3_vfs {
    VFS.get().unwrap().1
}

/// SAFETY of the functions below: SQLite calls them with what `open` prepared: `szOsFile` bytes, ours first.
unsafe fn under(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    unsafe { file.cast::<File>().add(1).cast() }
}

unsafe fn path_of<'a>(file: *mut ffi::sqlite3_file) -> Option<&'a Path> {
    unsafe { (*file.cast::<File>()).path.as_ref().map(PathBuf::as_path) }
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    given: *mut c_int,
) -> c_int {
    unsafe {
        let ours = file.cast::<File>();
        (*ours).base.pMethods = std::ptr::null();
        (*ours).path = std::ptr::null_mut();
        let system = system();
        let opened = (*system).xOpen.unwrap()(system, name, under(file), flags, given);
        if opened == ffi::SQLITE_OK {
            if !name.is_null() {
                let path = PathBuf::from(CStr::from_ptr(name).to_string_lossy().into_owned());
                (*ours).path = Box::into_raw(Box::new(path));
            }
            (*ours).base.pMethods = &raw const METHODS;
        }
        opened
    }
}

unsafe extern "C" fn delete(_: *mut ffi::sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    unsafe {
        let path = PathBuf::from(CStr::from_ptr(name).to_string_lossy().into_owned());
        let system = system();
        recorded(Some(&path), |file| Happened::Delete { file }, || (*system).xDelete.unwrap()(system, name, sync))
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    unsafe {
        let ours = file.cast::<File>();
        if !(*ours).path.is_null() {
            drop(Box::from_raw((*ours).path));
            (*ours).path = std::ptr::null_mut();
        }
        (*(*under(file)).pMethods).xClose.unwrap()(under(file))
    }
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, from: *const c_void, length: c_int, at: i64) -> c_int {
    unsafe {
        let bytes = std::slice::from_raw_parts(from.cast::<u8>(), length as usize);
        let happened = |file| Happened::Write { file, at: at as usize, bytes: bytes.to_vec() };
        recorded(path_of(file), happened, || (*(*under(file)).pMethods).xWrite.unwrap()(under(file), from, length, at))
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, length: i64) -> c_int {
    unsafe {
        let happened = |file| Happened::Truncate { file, length: length as usize };
        recorded(path_of(file), happened, || (*(*under(file)).pMethods).xTruncate.unwrap()(under(file), length))
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    unsafe {
        recorded(
            path_of(file),
            |file| Happened::Sync { file },
            || (*(*under(file)).pMethods).xSync.unwrap()(under(file), flags),
        )
    }
}

/// Hands a call on as it is.
macro_rules! hand_on {
    ($($name:ident $method:ident ($($argument:ident: $kind:ty),*) -> $gives:ty;)+) => {
        $(unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file $(, $argument: $kind)*) -> $gives {
            unsafe { (*(*under(file)).pMethods).$method.unwrap()(under(file) $(, $argument)*) }
        })+
    };
}

hand_on! {
    read xRead(into: *mut c_void, length: c_int, at: i64) -> c_int;
    size xFileSize(into: *mut i64) -> c_int;
    lock xLock(level: c_int) -> c_int;
    unlock xUnlock(level: c_int) -> c_int;
    check_lock xCheckReservedLock(into: *mut c_int) -> c_int;
    control xFileControl(operation: c_int, argument: *mut c_void) -> c_int;
    sector_size xSectorSize() -> c_int;
    characteristics xDeviceCharacteristics() -> c_int;
    shm_map xShmMap(page: c_int, size: c_int, extend: c_int, into: *mut *mut c_void) -> c_int;
    shm_lock xShmLock(offset: c_int, count: c_int, flags: c_int) -> c_int;
    shm_barrier xShmBarrier() -> ();
    shm_unmap xShmUnmap(delete: c_int) -> c_int;
    fetch xFetch(at: i64, length: c_int, into: *mut *mut c_void) -> c_int;
    unfetch xUnfetch(at: i64, page: *mut c_void) -> c_int;
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 3,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_lock),
    xFileControl: Some(control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: Some(fetch),
    xUnfetch: Some(unfetch),
};
