//! Percent-encoding (RFC 3986 §2.1) with the contract's own set of plain bytes.
//!
//! Every byte but `A-Z a-z 0-9 . _ ~ / : @ + - ,` is written `%XX`. So no encoded value holds a
//! space, a quote, a newline or a byte that the kernel's command line parser treats specially.

/// Whether `byte` stands for itself in an encoded value.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._~/:@+-,".contains(&byte)
}

/// Appends `bytes` to `out`, encoded.
pub fn encode(bytes: &[u8], out: &mut String) {
    encode_with(bytes, is_plain, out);
}

/// Appends one field of a comma-separated value to `out`: as [`encode`], the comma encoded too.
pub fn encode_field(bytes: &[u8], out: &mut String) {
    encode_with(bytes, |byte| byte != b',' && is_plain(byte), out);
}

fn encode_with(bytes: &[u8], plain: impl Fn(u8) -> bool, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.reserve(bytes.len());
    for &byte in bytes {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

/// Decodes an encoded value. Only what [`encode`] writes is accepted, except that hexadecimal
/// digits may be lower case.
///
/// # Errors
/// The offset of the first byte that is neither plain nor part of a `%XX` escape.
pub fn decode(text: &[u8]) -> Result<Vec<u8>, usize> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'%' => {
                let digit = |offset: usize| {
                    let byte = text.get(at + offset).copied()?;
                    char::from(byte).to_digit(16)
                };
                let (Some(high), Some(low)) = (digit(1), digit(2)) else {
                    return Err(at);
                };
                // Two hexadecimal digits make at most 255.
                out.push((high << 4 | low) as u8);
                at += 3;
            }
            byte if is_plain(byte) => {
                out.push(byte);
                at += 1;
            }
            _ => return Err(at),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(bytes: &[u8]) -> String {
        let mut out = String::new();
        encode(bytes, &mut out);
        out
    }

    #[test]
    fn plain_bytes_stand_for_themselves() {
        let plain = b"azAZ09._~/:@+-,";
        assert_eq!(encoded(plain).as_bytes(), plain);
    }

    #[test]
    fn everything_else_is_escaped() {
        for (bytes, text) in [
            (&b"a b"[..], "a%20b"),
            (b"", ""),
            (b"'", "%27"),
            (b"\n", "%0A"),
            (b"x;y", "x%3By"),
            (b"%", "%25"),
            (b"=", "%3D"),
            (b"\xff\x00", "%FF%00"),
        ] {
            assert_eq!(encoded(bytes), text);
            assert_eq!(decode(text.as_bytes()).as_deref(), Ok(bytes));
        }
    }

    #[test]
    fn a_field_escapes_the_comma() {
        let mut out = String::new();
        encode_field(b"a,b", &mut out);
        assert_eq!(out, "a%2Cb");
    }

    #[test]
    fn bad_escapes_name_their_place() {
        for (text, at) in [("%", 0), ("a%2", 1), ("ab%zz", 2), ("a b", 1), ("a=b", 1)] {
            assert_eq!(decode(text.as_bytes()), Err(at), "{text}");
        }
    }

    #[test]
    fn lower_case_digits_are_read() {
        assert_eq!(decode(b"%2f%2F"), Ok(b"//".to_vec()));
    }
}
