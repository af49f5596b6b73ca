//! Writing XML: elements with attributes, which the writer escapes.

use std::io;

use quick_xml::events::BytesText;
use quick_xml::Writer;

/// Text that grows.
pub(super) type Xml = Writer<Vec<u8>>;

/// An attribute's name and value.
pub(super) type Attribute<'a> = (&'a str, &'a str);

/// Whether XML carries `text` as an attribute without changing it.
pub(super) fn is_carried(text: &str) -> bool {
    !text.contains(|c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}'))
}

/// The document that `content` writes.
pub(super) fn document(content: impl FnOnce(&mut Xml) -> io::Result<()>) -> io::Result<String> {
    let mut xml = Writer::new_with_indent(Vec::new(), b' ', 2);
    content(&mut xml)?;
    let mut text = String::from_utf8(xml.into_inner()).map_err(io::Error::other)?;
    text.push('\n');
    Ok(text)
}

/// `<name …/>`
pub(super) fn empty(xml: &mut Xml, name: &str, attributes: &[Attribute]) -> io::Result<()> {
    let element = xml.create_element(name);
    element
        .with_attributes(attributes.iter().copied())
        .write_empty()
        .map(drop)
}

/// `<name …>text</name>`
pub(super) fn text(
    xml: &mut Xml,
    name: &str,
    attributes: &[Attribute],
    content: &str,
) -> io::Result<()> {
    let element = xml.create_element(name);
    element
        .with_attributes(attributes.iter().copied())
        .write_text_content(BytesText::new(content))
        .map(drop)
}

/// `<name …>` with other elements in it.
pub(super) fn nested(
    xml: &mut Xml,
    name: &str,
    attributes: &[Attribute],
    content: impl FnOnce(&mut Xml) -> io::Result<()>,
) -> io::Result<()> {
    let element = xml.create_element(name);
    element
        .with_attributes(attributes.iter().copied())
        .write_inner_content(content)
        .map(drop)
}
