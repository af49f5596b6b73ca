//! The grammar: `apppot.key=value` tokens, the same on every carrier.

use std::fmt;
use std::str::FromStr;

use crate::percent;

/// What every key of ours starts with.
pub const PREFIX: &str = "apppot.";

/// The one key without the prefix, as the first AppPot had it: the terminal type.
pub const TERM: &str = "TERM";

/// One `key=value` of the contract: the key without its prefix, the value still encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    /// The key without `apppot.`, or [`TERM`].
    pub key: &'a str,
    /// The value as it stands on the carrier.
    pub value: &'a str,
}

impl<'a> Token<'a> {
    /// Reads one word or line. `None` when it is a foreign word (it has neither our prefix nor is
    /// it `TERM=`).
    ///
    /// # Errors
    /// A word with our prefix that is not `apppot.key=value` in ASCII.
    pub fn parse(word: &'a [u8]) -> Result<Option<Self>, Error> {
        let ours = word.starts_with(PREFIX.as_bytes());
        if !ours && !word.starts_with(b"TERM=") {
            return Ok(None);
        }
        let text = std::str::from_utf8(word)
            .ok()
            .filter(|text| text.is_ascii())
            .ok_or_else(|| Error::new(word, "is not ASCII"))?;
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| Error::new(word, "has no '='"))?;
        let key = if ours { &key[PREFIX.len()..] } else { key };
        if key.is_empty() {
            return Err(Error::new(word, "has no key"));
        }
        if ours && key == TERM {
            return Err(Error::new(word, "has a prefix that TERM does not take"));
        }
        Ok(Some(Token { key, value }))
    }

    /// The value's bytes.
    ///
    /// # Errors
    /// A bad percent-escape.
    pub fn bytes(&self) -> Result<Vec<u8>, Error> {
        self.decode(self.value)
    }

    /// The fields of a comma-separated value, each decoded.
    ///
    /// # Errors
    /// A bad percent-escape, or another number of fields than `N`.
    pub fn fields<const N: usize>(&self) -> Result<[Vec<u8>; N], Error> {
        let found = self.value.split(',').count();
        if found != N {
            return Err(self.error(&format!("has {found} fields where {N} belong")));
        }
        let mut fields = [const { Vec::new() }; N];
        for (field, text) in fields.iter_mut().zip(self.value.split(',')) {
            *field = self.decode(text)?;
        }
        Ok(fields)
    }

    fn decode(&self, text: &str) -> Result<Vec<u8>, Error> {
        percent::decode(text.as_bytes())
            .map_err(|_| self.error("has a byte that is neither plain nor a %XX escape"))
    }

    /// An error about this token.
    #[must_use]
    pub fn error(&self, what: &str) -> Error {
        Error::new(self.to_string().as_bytes(), what)
    }
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = if self.key == TERM { "" } else { PREFIX };
        write!(f, "{prefix}{}={}", self.key, self.value)
    }
}

/// A value that is a decimal number, digits only.
pub(crate) fn number<T: FromStr>(token: &Token) -> Result<T, Error> {
    parse(token, token.value.as_bytes())
}

/// A decimal number, digits only, in `token`.
pub(crate) fn parse<T: FromStr>(token: &Token, text: &[u8]) -> Result<T, Error> {
    std::str::from_utf8(text)
        .ok()
        // FromStr also takes a leading '+'.
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| token.error("is no number, or one that is too large"))
}

/// Tokens being written: the other direction of [`Token`].
#[derive(Debug, Default)]
pub(crate) struct Writer {
    tokens: Vec<String>,
}

impl Writer {
    /// Adds `apppot.key=value` (or `TERM=value`), the value encoded as a whole.
    pub(crate) fn add(&mut self, key: &str, value: impl AsRef<[u8]>) {
        let mut token = Self::start(key);
        percent::encode(value.as_ref(), &mut token);
        self.tokens.push(token);
    }

    /// Adds a comma-separated value, each field encoded.
    pub(crate) fn add_fields(&mut self, key: &str, fields: &[&[u8]]) {
        let mut token = Self::start(key);
        for (index, field) in fields.iter().enumerate() {
            if index > 0 {
                token.push(',');
            }
            percent::encode_field(field, &mut token);
        }
        self.tokens.push(token);
    }

    fn start(key: &str) -> String {
        let prefix = if key == TERM { "" } else { PREFIX };
        format!("{prefix}{key}=")
    }

    pub(crate) fn finish(self) -> Vec<String> {
        self.tokens
    }
}

/// A contract or report that cannot be understood: the token and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    subject: &'static str,
    token: String,
    what: String,
}

impl Error {
    /// `token` is quoted in the message, shortened where it is long and made printable. Values of
    /// environment variables may be secrets and are left out, as are the queries of URLs.
    #[must_use]
    pub fn new(token: &[u8], what: &str) -> Self {
        const SHOWN: usize = 80;
        let token = without_value(token);
        let mut shown = token[..token.len().min(SHOWN)].escape_ascii().to_string();
        if token.len() > SHOWN {
            shown.push('…');
        }
        Error {
            subject: "boot argument",
            token: shown,
            what: what.to_owned(),
        }
    }

    /// The same error, said of a report.
    pub(crate) fn of_report(mut self) -> Self {
        self.subject = "report token";
        self
    }

    /// The token that is at fault, made printable and shortened.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }
}

/// A token without the value of an environment variable: `apppot.env=NAME`; or without a URL's query.
fn without_value(token: &[u8]) -> &[u8] {
    let Some(variable) = token.strip_prefix(b"apppot.env=") else {
        return without_query(token);
    };
    let name = variable
        .iter()
        .enumerate()
        .position(|(at, &byte)| {
            byte == b'='
                || variable[at..]
                    .get(..3)
                    .is_some_and(|escape| escape.eq_ignore_ascii_case(b"%3D"))
        })
        .unwrap_or(variable.len());
    &token[..token.len() - variable.len() + name]
}

/// A token up to the question mark of a URL in it.
fn without_query(token: &[u8]) -> &[u8] {
    let keys: [&[u8]; 2] = [b"apppot.store", b"apppot.document"];
    let has_url = keys.iter().any(|key| token.starts_with(key))
        || token.windows(3).any(|three| three == b"://");
    let is_query = |at: usize| {
        let rest = &token[at..];
        rest[0] == b'?'
            || rest
                .get(..3)
                .is_some_and(|escape| escape.eq_ignore_ascii_case(b"%3F"))
    };
    let end = (0..token.len()).find(|&at| is_query(at));
    match end.filter(|_| has_url) {
        Some(end) => &token[..end],
        None => token,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} '{}' {}", self.subject, self.token, self.what)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_words_are_not_tokens() {
        for word in [
            "quiet",
            "root=/dev/sda",
            "apppot",
            "term=x",
            "TERMINAL=x",
            "",
        ] {
            assert_eq!(Token::parse(word.as_bytes()), Ok(None), "{word}");
        }
    }

    #[test]
    fn key_and_value_are_split_at_the_first_equals_sign() {
        let token = Token::parse(b"apppot.env=A%3Db").unwrap().unwrap();
        assert_eq!((token.key, token.value), ("env", "A%3Db"));
        let token = Token::parse(b"TERM=xterm").unwrap().unwrap();
        assert_eq!((token.key, token.value), ("TERM", "xterm"));
        assert_eq!(token.to_string(), "TERM=xterm");
    }

    #[test]
    fn malformed_tokens_are_named() {
        for (word, token, what) in [
            ("apppot.arg", "'apppot.arg'", "has no '='"),
            ("apppot.", "'apppot.'", "has no '='"),
            ("apppot.=x", "'apppot.=x'", "has no key"),
            ("apppot.é=1", "'apppot.\\xc3\\xa9=1'", "is not ASCII"),
            ("TERM=é", "'TERM=\\xc3\\xa9'", "is not ASCII"),
            ("apppot.TERM=x", "'apppot.TERM=x'", "TERM does not take"),
        ] {
            let error = Token::parse(word.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(token) && error.contains(what), "{error}");
        }
    }

    #[test]
    fn fields_are_counted() {
        let token = Token::parse(b"apppot.mount=a,b%2Cc,").unwrap().unwrap();
        let [a, b, c] = token.fields::<3>().unwrap();
        assert_eq!(
            (a.as_slice(), b.as_slice(), c.as_slice()),
            (&b"a"[..], &b"b,c"[..], &b""[..])
        );
        assert!(token
            .fields::<2>()
            .unwrap_err()
            .to_string()
            .contains("3 fields where 2"));
    }

    #[test]
    fn long_tokens_are_shortened() {
        let error = Error::new("x".repeat(1000).as_bytes(), "is long");
        assert_eq!(error.token(), format!("{}…", "x".repeat(80)));
        let error = Error::new("x".repeat(80).as_bytes(), "is long");
        assert_eq!(error.token(), "x".repeat(80));
    }

    #[test]
    fn values_of_the_environment_are_not_quoted() {
        for word in [
            "apppot.env=KEY%3Dsecret%zz",
            "apppot.env=KEY%3dsecret",
            "apppot.env=KEY=secret",
        ] {
            assert_eq!(Error::new(word.as_bytes(), "").token(), "apppot.env=KEY");
        }
        assert_eq!(Error::new(b"apppot.env=%3", "").token(), "apppot.env=%3");
    }

    #[test]
    fn queries_of_urls_are_not_quoted() {
        for (word, shown) in [
            (
                "apppot.store=files,http://h/o%3Fsecret",
                "apppot.store=files,http://h/o",
            ),
            (
                "apppot.store=files,http%3A%2F%2Fh%3fsecret",
                "apppot.store=files,http%3A%2F%2Fh",
            ),
            ("apppot.document=x?secret", "apppot.document=x"),
            ("http://h/o?secret", "http://h/o"),
            ("apppot.arg=a%3Fb", "apppot.arg=a%3Fb"),
        ] {
            assert_eq!(Error::new(word.as_bytes(), "").token(), shown);
        }
    }
}
