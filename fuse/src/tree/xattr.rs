//! GETXATTR and LISTXATTR: of the image's attributes those in `user.`, which tell where a file comes from. The others are for overlayfs.

use forebay_catalog::Xattr;
use nix::errno::Errno;
use zerocopy::FromBytes;

use super::Place;
use crate::abi::{GetxattrIn, GetxattrOut};
use crate::objects::{Outcome, put};

const USER: &[u8] = b"user.";

/// One attribute's value.
pub fn get(place: &Place, body: &[u8], answer: &mut [u8]) -> Result<Outcome, Errno> {
    let (request, name) = GetxattrIn::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    // Neither access lists nor labels: told once, `ls` asks no more.
    let name = name.strip_prefix(USER).ok_or(Errno::EOPNOTSUPP)?;
    for xattr in xattrs(place) {
        let xattr = xattr?;
        if xattr.name == name {
            return reply(request.size, xattr.value, answer);
        }
    }
    Err(Errno::ENODATA)
}

/// All names, each with a zero byte behind it.
pub fn list(place: &Place, body: &[u8], answer: &mut [u8]) -> Result<Outcome, Errno> {
    let (request, _) = GetxattrIn::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
    let mut names = Vec::new();
    for xattr in xattrs(place) {
        names.extend_from_slice(USER);
        names.extend_from_slice(xattr?.name);
        names.push(0);
    }
    reply(request.size, &names, answer)
}

/// The answer to LISTXATTR of what has none.
pub fn none(body: &[u8], answer: &mut [u8]) -> Result<Outcome, Errno> {
    let (request, _) = GetxattrIn::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
    reply(request.size, &[], answer)
}

fn xattrs(place: &Place) -> impl Iterator<Item = Result<Xattr<'_>, Errno>> {
    let xattrs = place.tree.image.user_xattrs(&place.node);
    xattrs.map(|xattr| xattr.map_err(|damaged| place.failed(damaged)))
}

/// The value, or its size if the reader has room for none.
fn reply(room: u32, value: &[u8], answer: &mut [u8]) -> Result<Outcome, Errno> {
    if room == 0 {
        return Ok(put(&GetxattrOut { size: value.len() as u32, ..GetxattrOut::default() }, answer));
    }
    if value.len() > room as usize {
        return Err(Errno::ERANGE);
    }
    answer.get_mut(..value.len()).ok_or(Errno::ERANGE)?.copy_from_slice(value);
    Ok(Outcome::Reply(value.len()))
}
