package dataplane

import "github.com/keyplane/keyplane/internal/awsjson"

// The body of a success, member by member, in r.out. Member names are constants that need no escaping.

func (r *request) beginBody() { r.out = append(r.out[:0], '{') }

func (r *request) endBody() { r.out = append(r.out, '}') }

func (r *request) memberName(name string) {
	if len(r.out) > 1 {
		r.out = append(r.out, ',')
	}
	r.out = append(r.out, '"')
	r.out = append(r.out, name...)
	r.out = append(r.out, '"', ':')
}

// member is for values of our own making that need no escaping: ARNs, key material IDs, names of algorithms.
func (r *request) member(name string, value []byte) {
	r.memberName(name)
	r.out = append(append(append(r.out, '"'), value...), '"')
}

// memberAlgorithm is member for an encryption algorithm of the request, SYMMETRIC_DEFAULT where it named none.
func (r *request) memberAlgorithm(name string, algorithm []byte) {
	if algorithm == nil {
		algorithm = symmetricDefault
	}
	r.member(name, algorithm)
}

func (r *request) memberTrue(name string) {
	r.memberName(name)
	r.out = append(r.out, "true"...)
}

func (r *request) memberBlob(name string, value []byte) {
	r.memberName(name)
	r.out = awsjson.AppendBase64(r.out, value)
}
