//! A segmented stream that is written.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use apppot_contract::store::{segment_size, REFRESH};
use apppot_contract::Url;

use crate::retry::persist;
use crate::shared::lock;
use crate::spool::Spool;
use crate::store::Store;

/// Segments that are full and not stored, beyond which the writer is held up.
const WAITING: usize = 2;
/// Storing takes at most one part in so many of the time, until there is no more to come.
const SHARE: u32 = 5;

/// What an upload is of.
pub(crate) struct Plan {
    /// For messages: `storing standard output`.
    pub(crate) what: &'static str,
    /// The segments that there may be.
    pub(crate) urls: Vec<Url>,
    /// Whether its first object is written at once, without bytes: a sign of life.
    pub(crate) is_announced: bool,
    /// When there is no time left to store any.
    pub(crate) until: Instant,
    /// Called when room for so many bytes, which were pushed, is there again.
    pub(crate) returned: Box<dyn Fn(u32) + Send + Sync>,
    /// Called once, when bytes are lost: why.
    pub(crate) failed: Box<dyn Fn(&str) + Send + Sync>,
}

/// The stream. A thread of its own stores it while it grows.
pub(crate) struct Upload {
    store: Arc<dyn Store>,
    plan: Plan,
    size: fn(usize) -> u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Those that are not stored whole; all but the last are full.
    segments: VecDeque<Spool>,
    /// The number of the first of them.
    first: usize,
    /// Bytes of the first that are stored; `None` when it is no object yet.
    stored: Option<u64>,
    /// Bytes whose room has not been returned.
    owed: u32,
    /// There will be no more.
    has_ended: bool,
    /// Why nothing more is taken.
    refused: Option<String>,
    /// The thread stores no more.
    is_done: bool,
}

/// The next thing to store.
struct Next {
    index: usize,
    spool: Spool,
}

impl Upload {
    /// Begins.
    ///
    /// # Errors
    /// There can be no thread.
    pub(crate) fn start(store: Arc<dyn Store>, plan: Plan) -> io::Result<Arc<Self>> {
        Self::with(store, plan, segment_size)
    }

    fn with(store: Arc<dyn Store>, plan: Plan, size: fn(usize) -> u64) -> io::Result<Arc<Self>> {
        let mut state = State::default();
        if plan.is_announced {
            state.segments.push_back(Spool::new()?);
        }
        let upload = Arc::new(Upload {
            store,
            plan,
            size,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let storing = Arc::clone(&upload);
        std::thread::Builder::new().spawn(move || storing.store_all())?;
        Ok(upload)
    }

    /// Adds to the stream. The room is returned later; what does not get into its place is lost, which is
    /// told once.
    pub(crate) fn push(&self, bytes: &[u8]) {
        let mut state = lock(&self.state);
        // A frame's.
        state.owed += bytes.len() as u32;
        if state.refused.is_none() {
            if let Err(reason) = self.append(&mut state, bytes) {
                state.refused = Some(reason.clone());
                drop(state);
                (self.plan.failed)(&reason);
                state = lock(&self.state);
            }
        }
        self.return_room(&mut state);
        self.changed.notify_all();
    }

    fn append(&self, state: &mut State, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            let last = (state.first + state.segments.len()).checked_sub(1);
            let room = match (last, state.segments.back()) {
                (Some(last), Some(spool)) => (self.size)(last) - spool.length(),
                _ => 0,
            };
            if room == 0 {
                if state.first + state.segments.len() == self.plan.urls.len() {
                    let size: u64 = (0..self.plan.urls.len()).map(self.size).sum();
                    return Err(format!(
                        "there is more than its objects hold ({} MiB)",
                        size >> 20
                    ));
                }
                let spool = Spool::new().map_err(|error| format!("keeping what comes: {error}"))?;
                state.segments.push_back(spool);
                continue;
            }
            let most = usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len()));
            let (piece, rest) = bytes.split_at(most);
            if let Some(spool) = state.segments.back_mut() {
                let added = spool.append(piece);
                added.map_err(|error| format!("keeping what comes: {error}"))?;
            }
            bytes = rest;
        }
        Ok(())
    }

    /// Lets more come, unless too much waits.
    fn return_room(&self, state: &mut State) {
        if self.has_room(state) {
            let owed = std::mem::take(&mut state.owed);
            if owed > 0 {
                (self.plan.returned)(owed);
            }
        }
    }

    /// Waits until not too much waits, for those who are not told of room.
    pub(crate) fn wait_for_room(&self) {
        let mut state = lock(&self.state);
        while !self.has_room(&state) && !state.is_done {
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn has_room(&self, state: &State) -> bool {
        state.segments.len() <= WAITING || state.refused.is_some()
    }

    /// The stream has ended: waits until it is stored.
    ///
    /// # Errors
    /// Why a part of it is lost.
    pub(crate) fn finish(&self) -> Result<(), String> {
        let mut state = lock(&self.state);
        state.has_ended = true;
        self.changed.notify_all();
        while !state.is_done {
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        state.refused.clone().map_or(Ok(()), Err)
    }

    /// The thread.
    fn store_all(&self) {
        let mut not_before = Instant::now();
        while let Some(next) = self.next(not_before) {
            let begun = Instant::now();
            let (url, length) = (&self.plan.urls[next.index], next.spool.length());
            let stored = persist(self.plan.what, self.plan.until, || {
                let mut reader = next.spool.reader();
                self.store.put(url, &mut reader, length, self.plan.until)
            });
            let pause = begun.elapsed().saturating_mul(SHARE - 1);
            not_before = Instant::now() + pause.max(REFRESH);
            if let Err(reason) = self.advance(length, stored) {
                (self.plan.failed)(&reason);
                break;
            }
        }
        lock(&self.state).is_done = true;
        self.changed.notify_all();
    }

    /// Takes note of what was stored of the first segment.
    fn advance(&self, length: u64, stored: Result<(), String>) -> Result<(), String> {
        let mut state = lock(&self.state);
        match stored {
            Ok(()) if length == (self.size)(state.first) => {
                state.segments.pop_front();
                (state.first, state.stored) = (state.first + 1, None);
            }
            Ok(()) => state.stored = Some(length),
            Err(reason) => {
                // Its bytes would stay for nothing.
                state.segments.clear();
                let is_first = state.refused.is_none();
                state.refused.get_or_insert_with(|| reason.clone());
                self.return_room(&mut state);
                return match is_first {
                    true => Err(reason),
                    false => Ok(()),
                };
            }
        }
        self.return_room(&mut state);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits for something to store: a full segment at once, what else is new not before then, unless
    /// there is no more to come. `None` when everything is stored, or nothing can be.
    fn next(&self, not_before: Instant) -> Option<Next> {
        let mut state = lock(&self.state);
        loop {
            let length = state.segments.front().map(Spool::length);
            let is_new = length > state.stored;
            let is_full = length == Some((self.size)(state.first));
            let left = not_before.saturating_duration_since(Instant::now());
            if is_new && (is_full || state.has_ended || left.is_zero()) {
                return state.segments.front().map(|spool| Next {
                    index: state.first,
                    spool: spool.clone(),
                });
            }
            if !is_new && state.has_ended {
                return None;
            }
            let most = if is_new { left } else { Duration::MAX };
            let waited = self.changed.wait_timeout(state, most);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::store::tests::{urls, Fate, Memory};

    /// Small segments: 3, 6, 12, 12, ...
    fn small(index: usize) -> u64 {
        [3, 6].get(index).copied().unwrap_or(12)
    }

    /// What has been returned, and the reasons of failures.
    #[derive(Default)]
    struct Told {
        returned: AtomicU64,
        failures: Mutex<Vec<String>>,
    }

    fn upload(memory: &Arc<Memory>, segments: usize) -> (Arc<Upload>, Arc<Told>) {
        let told = Arc::new(Told::default());
        let (credit, failures) = (Arc::clone(&told), Arc::clone(&told));
        let plan = Plan {
            what: "storing",
            urls: urls(segments),
            is_announced: false,
            until: Instant::now() + Duration::from_secs(600),
            returned: Box::new(move |bytes| {
                credit.returned.fetch_add(bytes.into(), SeqCst);
            }),
            failed: Box::new(move |reason| {
                failures.failures.lock().unwrap().push(reason.to_owned())
            }),
        };
        let store: Arc<dyn Store> = Arc::<Memory>::clone(memory);
        (Upload::with(store, plan, small).unwrap(), told)
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![Just(Fate::Pass), Just(Fate::Fail)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn all_bytes_come_through_all_faults(
            writes in vec(vec(any::<u8>(), 0..40), 0..8),
            fates in vec(fate(), 0..12),
        ) {
            let memory = Arc::new(Memory::default());
            *memory.fates.lock().unwrap() = fates;
            let (upload, told) = upload(&memory, 40);
            for write in &writes {
                upload.push(write);
            }
            upload.finish().unwrap();
            let bytes = writes.concat();
            prop_assert_eq!(memory.concat(&urls(40)), &bytes[..]);
            prop_assert_eq!(told.returned.load(SeqCst), bytes.len() as u64);
            let objects = memory.objects.lock().unwrap();
            for (index, url) in urls(objects.len()).iter().enumerate() {
                let length = objects[url.secret()].len() as u64;
                prop_assert!(length == small(index) || index + 1 == objects.len());
            }
        }
    }

    #[test]
    fn what_is_new_is_stored_before_the_end() {
        let memory = Arc::new(Memory::default());
        let (upload, _) = upload(&memory, 2);
        upload.push(b"ab");
        let end = Instant::now() + Duration::from_secs(60);
        while memory.concat(&urls(2)) != b"ab" {
            assert!(Instant::now() < end, "not stored");
            std::thread::sleep(Duration::from_millis(5));
        }
        upload.push(b"c");
        upload.finish().unwrap();
        assert_eq!(memory.concat(&urls(2)), b"abc");
    }

    #[test]
    fn an_object_without_bytes_is_a_sign_of_life() {
        let memory = Arc::new(Memory::default());
        let (upload, _) = upload(&memory, 2);
        upload.finish().unwrap();
        assert!(memory.objects.lock().unwrap().is_empty());
        let plan = Plan {
            what: "storing",
            urls: urls(2),
            is_announced: true,
            until: Instant::now() + Duration::from_secs(600),
            returned: Box::new(|_| {}),
            failed: Box::new(|_| {}),
        };
        let store: Arc<dyn Store> = Arc::<Memory>::clone(&memory);
        let upload = Upload::with(store, plan, small).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while memory.objects.lock().unwrap().len() != 1 {
            assert!(Instant::now() < end, "not stored");
            std::thread::sleep(Duration::from_millis(5));
        }
        upload.push(b"abcd");
        upload.finish().unwrap();
        assert_eq!(memory.concat(&urls(2)), b"abcd");
    }

    #[test]
    fn more_than_the_objects_hold_is_told_once_and_the_rest_stored() {
        let memory = Arc::new(Memory::default());
        let (upload, told) = upload(&memory, 2);
        for _ in 0..3 {
            upload.push(b"abcdefgh");
        }
        assert!(upload
            .finish()
            .unwrap_err()
            .contains("more than its objects hold"));
        assert_eq!(memory.concat(&urls(2)), b"abcdefgha");
        assert_eq!(told.returned.load(SeqCst), 24, "the job is not held up");
        assert_eq!(told.failures.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_refusal_is_told_and_holds_nobody_up() {
        let memory = Arc::new(Memory::default());
        *memory.fates.lock().unwrap() = vec![Fate::Refuse];
        let (upload, told) = upload(&memory, 40);
        for _ in 0..20 {
            upload.push(b"abcdefgh");
        }
        assert!(upload.finish().unwrap_err().contains("403"));
        assert_eq!(told.failures.lock().unwrap().len(), 1);
        assert_eq!(told.returned.load(SeqCst), 160);
    }
}
