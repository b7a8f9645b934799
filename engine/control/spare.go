package control

// OnWanted has fn called when the first client registers for an event and when the last one has
// gone, from any goroutine: Wanted tells which of the two. fn must not call the server otherwise.
// OnWanted must be called before Serve.
func (s *Server) OnWanted(fn func(event string)) { s.told = fn }

// count changes how many clients want event i.
func (s *Server) count(i int, by int32) {
	if n := s.wanted[i].Add(by); s.told != nil && (n == 0 || n == 1 && by > 0) {
		s.told(s.events[i])
	}
}

// Spare sends an event of which clients may miss some: it leaves out those whose queue is
// half full, so that there is room for what they must not miss. It neither waits nor logs.
func (s *Server) Spare(event string, m *Message) {
	if !s.Wanted(event) {
		return
	}
	pkt, err := AppendPacket(nil, Event, event, m)
	if err != nil {
		return
	}
	s.deliver(event, pkt, func(c *client) bool { return c.hasRoom(len(pkt)) })
}

// hasRoom tells whether n octets more leave half of the client's queue free, and of all together.
func (c *client) hasRoom(n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queued+n <= c.s.queue/2 && c.s.queued.Load()+int64(n) <= c.s.total/2
}
