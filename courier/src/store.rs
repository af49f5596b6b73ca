//! What is asked of an object store, and how that can fail.

use std::io::Read;
use std::time::Instant;

use apppot_contract::Url;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Another may succeed.
    Passing(String),
    /// No other will.
    Lasting(String),
}

/// An object, as it comes.
pub(crate) struct Object {
    /// Its bytes, from where they were asked for.
    pub(crate) body: Box<dyn Read + Send>,
    /// How many they are.
    pub(crate) length: u64,
}

/// Objects by their URLs. Each request is one attempt, which ends at `until`.
pub(crate) trait Store: Send + Sync {
    /// Reads an object from byte `from`.
    ///
    /// # Errors
    /// As [`Trouble`] says.
    fn get(&self, url: &Url, from: u64, until: Instant) -> Result<Object, Trouble>;

    /// Writes an object of `length` bytes.
    ///
    /// # Errors
    /// As [`Trouble`] says.
    fn put(
        &self,
        url: &Url,
        body: &mut dyn Read,
        length: u64,
        until: Instant,
    ) -> Result<(), Trouble>;
}

/// A store in memory, which fails as it is told to.
#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;
    use std::io;
    use std::sync::Mutex;

    use super::*;

    /// What becomes of a request.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Fate {
        Pass,
        /// It fails, and may be made again.
        Fail,
        /// It fails after so many bytes.
        Cut(usize),
        /// It is refused for good.
        Refuse,
    }

    #[derive(Default)]
    pub(crate) struct Memory {
        pub(crate) objects: Mutex<HashMap<String, Vec<u8>>>,
        /// Of the next requests; then all pass.
        pub(crate) fates: Mutex<Vec<Fate>>,
    }

    impl Memory {
        fn fate(&self) -> Fate {
            self.fates.lock().unwrap().pop().unwrap_or(Fate::Pass)
        }

        /// The bytes of all of these, one after the other.
        pub(crate) fn concat(&self, urls: &[Url]) -> Vec<u8> {
            let objects = self.objects.lock().unwrap();
            let found = urls.iter().filter_map(|url| objects.get(url.secret()));
            found.flatten().copied().collect()
        }
    }

    /// Fails after its bytes.
    struct Broken(io::Cursor<Vec<u8>>);

    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::ErrorKind::ConnectionReset.into()),
                len => Ok(len),
            }
        }
    }

    impl Store for Memory {
        fn get(&self, url: &Url, from: u64, _: Instant) -> Result<Object, Trouble> {
            let objects = self.objects.lock().unwrap();
            let found = objects.get(url.secret());
            let found = found.ok_or_else(|| Trouble::Lasting(String::from("HTTP 404")))?;
            let bytes = found[from as usize..].to_vec();
            let length = bytes.len() as u64;
            let body: Box<dyn Read + Send> = match self.fate() {
                Fate::Pass => Box::new(io::Cursor::new(bytes)),
                Fate::Fail => return Err(Trouble::Passing(String::from("busy"))),
                Fate::Refuse => return Err(Trouble::Lasting(String::from("HTTP 403"))),
                Fate::Cut(len) => {
                    let bytes = bytes[..len.min(bytes.len())].to_vec();
                    Box::new(Broken(io::Cursor::new(bytes)))
                }
            };
            Ok(Object { body, length })
        }

        fn put(
            &self,
            url: &Url,
            body: &mut dyn Read,
            length: u64,
            _: Instant,
        ) -> Result<(), Trouble> {
            let mut bytes = Vec::new();
            match self.fate() {
                Fate::Pass => {}
                Fate::Refuse => return Err(Trouble::Lasting(String::from("HTTP 403"))),
                // An object is there whole or not at all.
                Fate::Fail | Fate::Cut(_) => return Err(Trouble::Passing(String::from("busy"))),
            }
            body.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, length);
            let mut objects = self.objects.lock().unwrap();
            let before = objects.insert(url.secret().to_owned(), bytes.clone());
            assert!(
                bytes.starts_with(&before.unwrap_or_default()),
                "an object only grows"
            );
            Ok(())
        }
    }

    pub(crate) fn urls(count: usize) -> Vec<Url> {
        let url = |index| Url::new(&format!("http://store/{index}?secret")).unwrap();
        (0..count).map(url).collect()
    }
}
