//! A segmented stream that is read.

use std::io::{self, Read};
use std::sync::Arc;

use apppot_contract::store::segment_size;
use apppot_contract::Url;

use crate::retry::Patience;
use crate::store::{Object, Store, Trouble};

/// The bytes of all segments, one after the other. A connection that breaks is made again where it broke.
pub(crate) struct Download {
    store: Arc<dyn Store>,
    /// Every segment that there is.
    urls: Vec<Url>,
    /// What a segment holds.
    size: fn(usize) -> u64,
    /// The segment that is read, and how much of it has been.
    index: usize,
    offset: u64,
    /// The rest of it, as it comes.
    object: Option<Object>,
    patience: Patience,
}

impl Download {
    /// The stream in `urls`.
    pub(crate) fn new(store: Arc<dyn Store>, urls: Vec<Url>, patience: Patience) -> Self {
        Download {
            store,
            urls,
            size: segment_size,
            index: 0,
            offset: 0,
            object: None,
            patience,
        }
    }

    /// Bytes of the segment that is open; 0 when it has been read to its end.
    fn read_segment(&mut self, object: &mut Object, buffer: &mut [u8]) -> Result<usize, Trouble> {
        let url = &self.urls[self.index];
        let most =
            usize::try_from(object.length).map_or(buffer.len(), |left| left.min(buffer.len()));
        if most == 0 {
            return Ok(0);
        }
        match object.body.read(&mut buffer[..most]) {
            Ok(0) => Err(Trouble::Passing(format!("{url}: the answer was cut off"))),
            Ok(len) => {
                object.length -= len as u64;
                self.offset += len as u64;
                Ok(len)
            }
            Err(error) => Err(Trouble::Passing(format!("{url}: {error}"))),
        }
    }

    fn open(&mut self) -> Result<Object, Trouble> {
        let url = &self.urls[self.index];
        let object = self.store.get(url, self.offset, self.patience.until())?;
        let (whole, size) = (self.offset + object.length, (self.size)(self.index));
        let is_last = self.index + 1 == self.urls.len();
        if whole > size || (whole < size && !is_last) {
            let what = format!("{url}: the segment has {whole} bytes, and {size} belong in it");
            return Err(Trouble::Lasting(what));
        }
        Ok(object)
    }
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.index < self.urls.len() && !buffer.is_empty() {
            let object = self.object.take();
            let read = object
                .map_or_else(|| self.open(), Ok)
                .and_then(|mut object| {
                    let len = self.read_segment(&mut object, buffer)?;
                    self.object = Some(object);
                    Ok(len)
                });
            match read {
                Ok(0) => {
                    (self.index, self.offset, self.object) = (self.index + 1, 0, None);
                }
                Ok(len) => {
                    self.patience.renew();
                    return Ok(len);
                }
                Err(trouble) => self.patience.wait(trouble).map_err(io::Error::other)?,
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::store::tests::{urls, Fate, Memory};

    /// Small segments: 3, 6, 12, 12, ...
    fn small(index: usize) -> u64 {
        [3, 6].get(index).copied().unwrap_or(12)
    }

    fn stored(bytes: &[u8]) -> (Arc<Memory>, Vec<Url>) {
        let memory = Arc::new(Memory::default());
        let (mut rest, mut pieces) = (bytes, Vec::new());
        loop {
            let (piece, more) = rest.split_at(rest.len().min(small(pieces.len()) as usize));
            pieces.push(piece.to_vec());
            rest = more;
            if rest.is_empty() {
                break;
            }
        }
        let names = urls(pieces.len());
        let named = names.iter().map(|url| url.secret().to_owned());
        memory.objects.lock().unwrap().extend(named.zip(pieces));
        (memory, names)
    }

    fn read(memory: &Arc<Memory>, names: &[Url]) -> io::Result<Vec<u8>> {
        let store: Arc<dyn Store> = Arc::<Memory>::clone(memory);
        let patience = Patience::new("reading", Instant::now() + Duration::from_secs(600));
        let mut download = Download::new(store, names.to_vec(), patience);
        download.size = small;
        let mut bytes = Vec::new();
        download.read_to_end(&mut bytes).map(|_| bytes)
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            Just(Fate::Pass),
            Just(Fate::Fail),
            (0usize..12).prop_map(Fate::Cut)
        ]
    }

    proptest! {
        #[test]
        fn all_bytes_come_through_all_faults(bytes in vec(any::<u8>(), 0..80), fates in vec(fate(), 0..12)) {
            let (memory, names) = stored(&bytes);
            *memory.fates.lock().unwrap() = fates;
            prop_assert_eq!(read(&memory, &names).unwrap(), bytes);
        }
    }

    #[test]
    fn a_stream_with_a_hole_or_a_wrong_length_is_an_error() {
        let bytes: Vec<u8> = (0..30).collect();
        let set = |index: usize, object: Option<Vec<u8>>| {
            let (memory, names) = stored(&bytes);
            let key = names[index].secret().to_owned();
            match object {
                Some(object) => memory.objects.lock().unwrap().insert(key, object),
                None => memory.objects.lock().unwrap().remove(&key),
            };
            read(&memory, &names).unwrap_err().to_string()
        };
        assert!(set(1, None).contains("404"));
        assert!(set(1, Some(vec![0; 5])).contains("5 bytes, and 6 belong"));
        assert!(set(3, Some(vec![0; 13])).contains("13 bytes, and 12 belong"));
        let (memory, names) = stored(&bytes);
        *memory.fates.lock().unwrap() = vec![Fate::Refuse];
        assert!(read(&memory, &names)
            .unwrap_err()
            .to_string()
            .contains("403"));
    }
}
