package ike

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"time"
)

// cookieJar makes and checks the cookies of RFC 7296 section 2.6 without keeping anything
// for a peer: a cookie is the secret's number and a hash under it of the nonce, the
// address and the SPI of the request.
type cookieJar struct {
	on      bool
	version uint32
	secret  [2][32]byte // by version&1: the current one and the one before
	changed time.Duration
}

// cookieLife is how long a secret is used; its cookies are good for twice that time.
const cookieLife = 2 * time.Minute

const cookieLen = 4 + sha256.Size/2

// rotate makes a new secret when the present one is old.
func (m *Machine) rotateCookies() {
	j := &m.cookies
	if j.version != 0 && m.now.Mono-j.changed < cookieLife {
		return
	}
	if j.version == 0 {
		m.env.Random(j.secret[0][:])
	} else if m.now.Mono-j.changed >= 2*cookieLife {
		m.env.Random(j.secret[j.version&1][:]) // what it signed is too old by now
	}
	j.version++
	m.env.Random(j.secret[j.version&1][:])
	j.changed = m.now.Mono
}

// cookie returns the cookie of a request under the secret of that version.
func (m *Machine) cookie(version uint32, h *Header, p Path, ni []byte) []byte {
	mac := hmac.New(sha256.New, m.cookies.secret[version&1][:])
	ip := p.Remote.Addr().As16()
	var spi [8]byte
	binary.BigEndian.PutUint64(spi[:], h.SPIi)
	mac.Write(ip[:])
	mac.Write(spi[:])
	mac.Write(ni)
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+sha256.Size), version)
	return mac.Sum(b)[:cookieLen]
}

// checkCookie tells whether the initial request in m.msg may take a place in the table. If
// it must show a cookie first, that is demanded.
func (m *Machine) checkCookie(h *Header, p Path, ni []byte, half int) bool {
	on := half >= m.cookieFrom
	if on != m.cookies.on {
		m.cookies.on = on
		n := 0
		if on {
			n = 1
		}
		m.event(Event{Kind: EvCookies, Count: n, Path: p})
	}
	if !on {
		return true
	}
	m.rotateCookies()
	if n, ok := m.msg.FindNotify(NotifyCookie); ok && len(n.Data) == cookieLen {
		v := binary.BigEndian.Uint32(n.Data)
		if (v == m.cookies.version || v+1 == m.cookies.version) && hmac.Equal(n.Data, m.cookie(v, h, p, ni)) {
			return true
		}
	}
	m.notice(p, h, NotifyCookie, m.cookie(m.cookies.version, h, p, ni))
	return false
}
