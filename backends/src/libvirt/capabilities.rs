//! What libvirt's description of itself says (<https://libvirt.org/formatcaps.html>).

use quick_xml::events::Event;
use quick_xml::Reader;

/// The group that QEMU runs in where nobody says otherwise. Its directories are for that group, so a QEMU that is
/// to be the caller's must be a member. `None` where users and groups are not libvirt's to choose.
pub(super) fn group_of_qemu(capabilities: &str) -> Option<u32> {
    let mut reader = Reader::from_str(capabilities);
    let (mut element, mut model) = (Vec::new(), String::new());
    loop {
        match reader.read_event().ok()? {
            Event::Start(start) => element = start.name().as_ref().to_vec(),
            Event::End(_) => element.clear(),
            Event::Text(text) if element == b"model" => model = text.decode().ok()?.into_owned(),
            Event::Text(text) if element == b"baselabel" && model == "dac" => {
                // `+64055:+108`
                let label = text.decode().ok()?;
                let (_, group) = label.split_once(':')?;
                return group.trim_start_matches('+').parse().ok();
            }
            Event::Eof => return None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_that_of_the_model_dac() {
        let text = "<capabilities><host><cpu><model>EPYC</model></cpu>\
            <secmodel><model>apparmor</model><doi>0</doi><baselabel type='kvm'>a:b</baselabel></secmodel>\
            <secmodel><model>dac</model><doi>0</doi><baselabel type='kvm'>+64055:+108</baselabel>\
            <baselabel type='qemu'>+64055:+109</baselabel></secmodel></host></capabilities>";
        assert_eq!(group_of_qemu(text), Some(108));
        for none in [
            "<capabilities><host><secmodel><model>none</model></secmodel></host></capabilities>",
            "<secmodel><model>dac</model><baselabel>?</baselabel></secmodel>",
            "<capabilities",
            "",
        ] {
            assert_eq!(group_of_qemu(none), None, "{none}");
        }
    }
}
