package invariants

import (
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// depthMax bounds how far pointers are followed, which a cycle would make endless.
const depthMax = 16

// walk returns what is wrong with *v, or "".
func walk(v any, reusable []string) string {
	p := reflect.ValueOf(v)
	if p.Kind() != reflect.Pointer || p.IsNil() || p.Elem().Kind() != reflect.Struct {
		return "Zeroed wants a pointer to a struct"
	}
	for _, name := range reusable {
		if !exists(p.Elem().Type(), name) {
			return "Zeroed: there is no field " + name
		}
	}
	return zero(p.Elem(), "", reusable)
}

// exists says whether path names a field of t or of a struct in it.
func exists(t reflect.Type, path string) bool {
	name, rest, deeper := strings.Cut(path, ".")
	f, ok := fieldOf(t, name)
	return ok && (!deeper || f.Kind() == reflect.Struct && exists(f, rest))
}

// fieldOf looks among t's own fields: promoted ones are named by their path.
func fieldOf(t reflect.Type, name string) (reflect.Type, bool) {
	for i := range t.NumField() {
		if f := t.Field(i); f.Name == name {
			return f.Type, true
		}
	}
	return nil, false
}

// zero checks the struct v, whose path ends in a dot unless it is empty.
func zero(v reflect.Value, path string, reusable []string) string {
	for i := range v.NumField() {
		f, name := v.Field(i), path+v.Type().Field(i).Name
		var problem string
		switch {
		case slices.Contains(reusable, name):
			problem = kept(f, name, 0)
		case f.IsZero():
		case f.Kind() == reflect.Struct && slices.ContainsFunc(reusable, func(r string) bool { return strings.HasPrefix(r, name+".") }):
			problem = zero(f, name+".", reusable)
		default:
			problem = name + " is not zero"
		}
		if problem != "" {
			return problem
		}
	}
	return ""
}

// kept checks a value that may keep its memory.
func kept(v reflect.Value, name string, depth int) string {
	if depth > depthMax {
		return name + " is nested too deeply to be checked"
	}
	switch v.Kind() {
	case reflect.Slice:
		if v.Len() != 0 {
			return name + " has a length"
		}
		whole := v.Slice(0, v.Cap())
		if whole.Type().Elem().Kind() == reflect.Uint8 {
			for _, b := range whole.Bytes() {
				if b != 0 {
					return name + " is not zero up to its capacity"
				}
			}
			return ""
		}
		return keptElements(whole, name, depth)
	case reflect.Array:
		return keptElements(v, name, depth)
	case reflect.Pointer:
		if v.IsNil() || v.Elem().IsZero() {
			return ""
		}
		return kept(v.Elem(), name, depth+1)
	case reflect.Struct:
		for i := range v.NumField() {
			if problem := kept(v.Field(i), name+"."+v.Type().Field(i).Name, depth+1); problem != "" {
				return problem
			}
		}
		return ""
	case reflect.Chan, reflect.Map:
		if v.Len() != 0 {
			return name + " is not empty"
		}
		return ""
	case reflect.Func, reflect.Interface:
		return ""
	}
	if !v.IsZero() {
		return name + " is not zero"
	}
	return ""
}

func keptElements(v reflect.Value, name string, depth int) string {
	for i := range v.Len() {
		if problem := kept(v.Index(i), name+"["+strconv.Itoa(i)+"]", depth+1); problem != "" {
			return problem
		}
	}
	return ""
}
